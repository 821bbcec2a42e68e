package metricsapi

import (
	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// account is how an answer came about: what was seen, what is known of the pods and, where each is
// set, of each of them. The rules tell it as they go, and decide nothing by it. The methods of a
// nil account do nothing.
type account struct {
	each bool // pods are wanted one by one

	seen   verdict // the expression's own value
	unseen *refusal
	known  knowledge
	pods   []accountedPod
}

// accountedPod is a pod that a query means, as it was judged.
type accountedPod struct {
	cluster.Pod
	aggregator.PodState
	state explain.State
}

// saw is told what the expression gives by itself.
func (a *account) saw(v verdict, refused *refusal) {
	if a != nil {
		a.seen, a.unseen = v, refused
	}
}

// knew is told what is known of the pods.
func (a *account) knew(k knowledge) {
	if a != nil {
		a.known = k
	}
}

// pod is told of a pod that the query means.
func (a *account) pod(p *cluster.Pod, s aggregator.PodState, state explain.State) {
	if a != nil && a.each {
		a.pods = append(a.pods, accountedPod{*p, s, state})
	}
}

// unpointed is told of a workload none of whose pods has ever been heard of.
func (a *account) unpointed(w cluster.Workload) {
	if a == nil {
		return
	}
	for i := range a.pods {
		if p := &a.pods[i]; p.state == explain.StateMute && p.Workload() == w {
			p.state = explain.StateUnpointed
		}
	}
}

// accounted are the rules with an account that hears of each pod.
func (r rules) accounted() (rules, *account) {
	a := &account{each: true}
	r.account = a
	if r.holder != nil {
		h := *r.holder
		h.account, r.holder = a, &h
	}
	return r, a
}
