package explain

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// Diagnose fills in what is wrong, the worst first, from everything else.
func (e *Explanation) Diagnose() {
	e.Troubles = nil
	told := map[string]bool{}
	for _, p := range e.Events {
		switch p.Reason {
		case hpas.ReasonSharedTarget:
			e.split(KindSharedTarget, fmt.Sprintf("the controller changes nothing: several HPAs scale %s (AmbiguousSelector)", e.Target), p)
		case hpas.ReasonMilliseconds:
			e.split(KindWrongUnit, fmt.Sprintf("WRONG UNIT: any traffic asks for all %d replicas", e.MaxReplicas), p)
		default:
			continue
		}
		told[p.Reason] = true
	}
	for i := range e.Metrics {
		e.diagnose(&e.Metrics[i])
	}
	if slices.ContainsFunc(e.Troubles, func(t Trouble) bool { return t.Kind == KindUnwired || t.Kind == KindHeld || t.Kind == KindSilent }) {
		told[hpas.ReasonMuteSidecars], told[hpas.ReasonUnpointedSidecars] = true, true
	}
	for _, p := range e.Events {
		if !told[p.Reason] {
			e.split(KindDoubtful, p.Reason, p)
		}
	}
	slices.SortStableFunc(e.Troubles, func(a, b Trouble) int { return slices.Index(Kinds(), a.Kind) - slices.Index(Kinds(), b.Kind) })
}

// Kinds are all, the worst first.
func Kinds() []Kind {
	return []Kind{KindSharedTarget, KindUnwired, KindNoAnswer, KindWrongUnit, KindHeld, KindSilent, KindSurge, KindDoubtful}
}

func (e *Explanation) trouble(kind Kind, what, cause, remedy string) {
	e.Troubles = append(e.Troubles, Trouble{Kind: kind, What: what, Cause: cause, Remedy: remedy})
}

// split makes a trouble of an event, whose message says first what is wrong and then what helps.
func (e *Explanation) split(kind Kind, what string, p hpas.Problem) {
	cause, remedy, found := strings.Cut(p.Message, ". ")
	if !found {
		cause, remedy, found = strings.Cut(p.Message, ": ")
	}
	if !found {
		remedy = "see " + p.Reason + " in manifests/runbook.md"
	}
	e.trouble(kind, what, cause, remedy)
}

// diagnose looks at one metric.
func (e *Explanation) diagnose(m *Metric) {
	doubtful := m.doubtful()
	switch {
	case m.Reporting == 0 && m.Error != "" && m.Expression != "" && m.unwired(e):
	case m.Error != "":
		cause, remedy := m.Error, "the message names what to write, or whom to look at; then: kubectl -n "+e.Namespace+" describe hpa "+e.Name
		if len(doubtful) > 0 {
			cause, remedy = causeOf(doubtful, e.At)+": "+m.Error, remedyOf(doubtful[0])
		}
		e.trouble(KindNoAnswer, fmt.Sprintf("NO ANSWER for %s, so the controller does not scale down", m.Name), cause, remedy)
	case m.Rule == RuleHeld && len(doubtful) > 0:
		e.trouble(KindHeld, m.heldText(e), causeOf(doubtful, e.At), remedyOf(doubtful[0]))
	case m.Rule == RuleHeld:
		e.trouble(KindHeld, m.heldText(e), m.Reason, "wait until it is known, or look at the log of meshpulse: the replicas are kept until then, and raised where what is seen asks for more")
	case len(doubtful) > 0:
		what := fmt.Sprintf("%d of %d sidecars of %s do not tell all", len(doubtful), max(m.Expected, len(m.Pods)+m.PodsLeftOut), m.Name)
		e.trouble(KindSilent, what, causeOf(doubtful, e.At)+m.goesOn(), remedyOf(doubtful[0]))
	}
	if s := m.Surge; s != nil && s.Active {
		e.surge(m, s)
	}
}

// heldText says what a held answer is, and since when.
func (m *Metric) heldText(e *Explanation) string {
	since := ""
	if m.HeldSince != nil {
		since = " for " + age(e.At.Sub(*m.HeldSince))
	}
	seen := "nothing is seen"
	if m.Seen != "" {
		seen = "what is seen is " + plain(m.Seen)
	}
	return fmt.Sprintf("HELD%s: %s answers %s, which keeps %d replicas; %s", since, m.Name, plain(m.Value), e.Replicas.Spec, seen)
}

// goesOn says what counts in place of pods of which not all is known, where the answer is not held.
func (m *Metric) goesOn() string {
	switch m.Rule {
	case RuleMore:
		return "; what is seen asks for more replicas all the same"
	case RuleEstimated:
		return "; they count as the mean of the others"
	}
	return "; the value stands without them"
}

// doubtful are the pods of which not all is known that should be, the worst first.
func (m *Metric) doubtful() (found []Pod) {
	for _, p := range m.Pods {
		if p.State != StateReporting && p.State != StateYoung && p.State != StateUnwired {
			found = append(found, p)
		}
	}
	return found
}

// unwired says whether the metric has no value since none of its pods has a sidecar, or one that
// was ever heard of, and tells so.
func (m *Metric) unwired(e *Explanation) bool {
	var bare, unpointed []string
	namespace, workload := e.Namespace, ""
	for _, p := range m.Pods {
		switch p.State {
		case StateUnwired:
			bare = append(bare, p.Name)
		case StateUnpointed:
			unpointed = append(unpointed, p.Name)
		default:
			return false
		}
		namespace, workload = p.Namespace, p.Workload
	}
	what := fmt.Sprintf("NOT WIRED: %s has no value, since nothing of what it means reports", m.Name)
	restart := fmt.Sprintf("kubectl -n %s rollout restart deployment/%s", namespace, workload)
	switch {
	case len(bare) > 0:
		e.trouble(KindUnwired, what, fmt.Sprintf("%s without a sidecar (%s): namespace %s is not injected, or they are older than that", counted(len(bare), "pod is", "pods are"), names(bare), namespace),
			fmt.Sprintf("kubectl label namespace %s istio-injection=enabled (or istio.io/rev=…), point its sidecars at meshpulse (manifests/istio), then %s", namespace, restart))
	case len(unpointed) > 0:
		e.trouble(KindUnwired, what, fmt.Sprintf("%s a sidecar that has never reported (%s): it is not pointed at meshpulse, or does not reach it", counted(len(unpointed), "pod has", "pods have"), names(unpointed)),
			"set envoyMetricsService for the mesh, or for the pods by the annotation of manifests/istio/pod-annotation.yaml, then "+restart)
	case m.Expected > 0: // sidecars have reported, and do not any more
		return false
	default:
		e.trouble(KindUnwired, what, "no pod that the expression means is known to have a sidecar: "+m.Error,
			"check the labels in the expression against the workload's name and namespace, and that its pods carry a sidecar that sends its stats to meshpulse (manifests/istio)")
	}
	return true
}

// surge tells of one that is on.
func (e *Explanation) surge(m *Metric, s *Surge) {
	since := ""
	if s.Since != nil {
		since = " for " + age(e.At.Sub(*s.Since))
	}
	served := "the expression alone gives more already"
	if s.Answered {
		served = "the answer is its rate, " + plain(m.Value)
	}
	remedy := "none is needed: " + served
	if e.Decision != nil {
		remedy += fmt.Sprintf(", and the controller asks for %d replicas at its next look", e.Decision.Replicas)
	}
	switch s.Action {
	case "scale":
		remedy += "; the target is raised before that (meshpulse.io/surge-action: scale)"
	case "observe":
		remedy += "; meshpulse.io/surge-action: scale would raise the target before that"
	default:
		remedy += "; to have the target raised before that: annotation meshpulse.io/surge-action: scale"
	}
	e.trouble(KindSurge, fmt.Sprintf("SURGE%s: %s/s, %s/s before", since, number(s.Rate), number(s.Baseline)),
		fmt.Sprintf("%s counts %s times as many requests as in the minute before; a surge is %g times, and less likely by chance than %g (it is %.1g)", m.Name, number(s.Rate/s.Baseline), s.Ratio, s.TailLimit, s.Tail), remedy)
}

// causeOf counts pods by their states, with names and how long they have told nothing.
func causeOf(pods []Pod, at time.Time) string {
	var parts []string
	for _, state := range States() {
		var found []string
		last := ""
		for _, p := range pods {
			if p.State != state {
				continue
			}
			found = append(found, p.Name)
			if p.LastFlush != nil && last == "" {
				last = ", last flush " + age(at.Sub(*p.LastFlush)) + " ago"
			}
			if p.Why != "" && last == "" {
				last = ", " + p.Why
			}
		}
		if len(found) > 0 {
			parts = append(parts, fmt.Sprintf("%s %s (%s%s)", counted(len(found), "sidecar", "sidecars"), stateText(state), names(found), last))
		}
	}
	return strings.Join(parts, "; ")
}

func stateText(s State) string {
	switch s {
	case StateContested:
		return "that two senders report as"
	case StateRefused:
		return "with refused samples"
	case StateSilent:
		return "silent"
	case StateAbsent:
		return "not back since the start of meshpulse"
	case StateMute:
		return "mute for longer than --hold"
	case StateUnpointed:
		return "never heard of"
	case StateUnheard:
		return "not heard of since it began"
	case StateLeft:
		return "deleted, and not all is known that it served"
	case StatePartial:
		return "not known over the whole window"
	}
	return string(s)
}

// remedyOf is what to do about a pod.
func remedyOf(p Pod) string {
	n := "kubectl -n " + p.Namespace + " "
	switch p.State {
	case StateContested:
		return "find out what sends from the address that is not the pod's (kubectl get pods -A -o wide), and end it"
	case StateRefused:
		return "see why: the log of meshpulse, and the reason label of meshpulse_store_dropped_samples_total; raise the limit that it names, or send fewer label sets"
	case StateSilent, StateMute:
		return fmt.Sprintf("%slogs %s -c istio-proxy --tail 20 shows whether it reaches meshpulse; if it hangs: %sdelete pod %s. It counts again from its next flush", n, p.Name, n, p.Name)
	case StateAbsent, StateUnheard, StateUnpointed:
		return fmt.Sprintf("wait a flush; if it lasts, its sidecar is not pointed at meshpulse or does not reach it: %slogs %s -c istio-proxy --tail 20, and manifests/istio for the wiring", n, p.Name)
	case StateLeft, StatePartial:
		return "wait: it is known again once the gap has left the window"
	}
	return n + "describe pod " + p.Name
}

// counted is a number with its noun.
func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}

// names lists a few.
func names(all []string) string {
	const most = 3
	if len(all) > most {
		return strings.Join(all[:most], ", ") + ", …"
	}
	return strings.Join(all, ", ")
}
