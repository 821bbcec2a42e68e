package metricsapi

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// A pod that two streams report as, neither with the better proof that it is the pod, is contested:
// its rows may be of either. Unlike a pod of which something is missing it may make what is seen
// too much as well as too little. So what is seen does not count, up or down, while both send and
// until what they have sent has left the window.

// contested returns the contested pods that an answer stands on. In a cluster they are those that
// exist and that the query means: anybody can dispute with himself who he is.
func (h *holder) contested(q *aggregator.Query, a aggregator.Answer) []aggregator.PodState {
	var found []aggregator.PodState
	for _, s := range a.Partial {
		if s.Rivals == nil {
			continue
		}
		if h != nil {
			p, known := h.pods.Get(s.Namespace, s.Name)
			if known && q.NamesPods() && !q.Selects(&p.Identity) || !known && h.pods.Synced() == nil {
				continue
			}
		}
		found = append(found, s)
	}
	slices.SortFunc(found, func(a, b aggregator.PodState) int { return strings.Compare(podName(a), podName(b)) })
	return found
}

func podName(s aggregator.PodState) string { return s.Namespace + "/" + s.Name }

// describeContest names a contested pod and where its rivals send from.
func describeContest(s aggregator.PodState) string {
	return fmt.Sprintf("%s, sent from %s and from %s", s.Name, s.Rivals.Counts, s.Rivals.Other)
}

// contestedProblem is what the HPAs' authors should know of contested pods, false while there may
// be none: a connection has taken over from another that may be dead. Ports change and are left
// out.
func contestedProblem(o *offer, pods []aggregator.PodState) (hpas.Problem, bool) {
	for _, s := range pods {
		if s.Rivals.Sure {
			return hpas.Problemf(hpas.ReasonContestedPod, "metric %s: two senders report as pod %s, from %s and from %s, and neither shows that it is the pod: no replicas are changed for it while both send. "+
				"Find out what sends from the address that is not the pod's, and end it", o, podName(s), hostOf(s.Rivals.Counts), hostOf(s.Rivals.Other)), true
		}
	}
	return hpas.Problem{}, false
}

// foreignProblem is what the HPAs' authors should know of pods that the cluster does not know: the
// name of one of them.
func foreignProblem(o *offer, name string) hpas.Problem {
	return hpas.Problemf(hpas.ReasonForeignPods, "metric %s: pods that the cluster does not know say that they are of those that it means, such as %s: they are not counted. "+
		"Start meshpulse with --foreign-pods=count if they are virtual machines or of another cluster; else find out what sends as them", o, name)
}

// refusedProblem is what the HPAs' authors should know of somebody who said that he is one of the
// pods and was refused: one of them by name.
func refusedProblem(o *offer, name, why string) hpas.Problem {
	return hpas.Problemf(hpas.ReasonRefusedSender, "metric %s: a sender that reports as pod %s is refused, and nothing of it is counted: %s", o, name, why)
}

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}
