package metricsapi

import (
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// sharing says what of all that HPAs ask for is answered here. It goes by what is written (see
// [hpas.Metric.Ours]), never by what is known of pods and series.
type sharing struct {
	hpas.Serving
	// passes: another adapter has what is not ours. Without one what no sidecar sends is refused
	// here, with what to write instead.
	passes bool
}

// others are what HPAs ask for and is not answered here.
type others struct {
	of    map[types.NamespacedName][]hpas.Metric
	whole map[types.NamespacedName]bool // HPAs that are not served
	// asked are the metrics with their selectors, names without.
	asked, names map[offerKey]bool
	problems     map[types.NamespacedName][]hpas.Problem
}

// divide leaves of each HPA what is answered here. The HPAs come oldest first, and as ever the
// oldest's query decides what several ask for by one name and selector; where one of them is not
// served, all get the other adapter's answer.
func (s sharing) divide(byAge []*hpas.Wants, words hpas.Vocabulary) ([]*hpas.Wants, others) {
	ours, left := s.decide(byAge, words)
	rest := others{map[types.NamespacedName][]hpas.Metric{}, map[types.NamespacedName]bool{}, map[offerKey]bool{}, map[offerKey]bool{}, map[types.NamespacedName][]hpas.Problem{}}
	own := make([]*hpas.Wants, len(byAge))
	for i, a := range byAge {
		var theirs []hpas.Metric
		if rest.whole[a.Key()] = !s.Serves(a.HPA); rest.whole[a.Key()] {
			own[i], theirs = a.None()
		} else {
			own[i], theirs = a.Own(func(w hpas.Metric) bool {
				key := keyOf(a, w)
				return !s.passes || w.Triggered || ours[key] && left[key] == ""
			})
		}
		for _, w := range theirs {
			key := keyOf(a, w)
			rest.asked[key], rest.names[key.name()] = true, true
			if ours[key] && left[key] != "" && !rest.whole[a.Key()] {
				rest.problems[a.Key()] = append(rest.problems[a.Key()], hpas.Problemf(hpas.ReasonQueryConflict, "metric %s is left to the other adapter, since HPA %s asks for it too and is not served (%s): "+
					"a request names only the metric and its selector. Better: a query name or a selector of its own", w.Written, left[key], hpas.Serve))
			}
		}
		if len(theirs) > 0 {
			rest.of[a.Key()] = theirs
		}
	}
	return own, rest
}

// decide says which metrics have a query that is ours, and which are asked for by an HPA, which it
// names, that is not served.
func (s sharing) decide(byAge []*hpas.Wants, words hpas.Vocabulary) (ours map[offerKey]bool, left map[offerKey]string) {
	ours, left = map[offerKey]bool{}, map[offerKey]string{}
	if !s.passes {
		return ours, left
	}
	for _, a := range byAge {
		served := s.Serves(a.HPA)
		for _, w := range a.Metrics {
			key := keyOf(a, w)
			_, decided := ours[key]
			switch {
			case !served:
				left[key] = a.Name
			case w.Expr != "" && !decided:
				ours[key] = w.Ours(words)
			}
		}
	}
	return ours, left
}

func keyOf(a *hpas.Wants, w hpas.Metric) offerKey {
	return offerKey{a.Namespace, w.Name, w.Canonical}
}

// name is the metric with whatever selector.
func (k offerKey) name() offerKey { return offerKey{namespace: k.namespace, metric: k.metric} }

// ours says whether a request is answered here where another adapter has the rest: what an HPA asks
// for and is ours, and what needs no HPA. A selector that no HPA has (kubectl get --raw without
// one) is of ours where nothing else of that name is in the namespace.
func (s *snapshot) ours(namespace, metric string, selector labels.Selector) bool {
	key := offerKey{namespace, strings.ToLower(metric), hpas.Canonical(selector)}
	switch _, named := hpas.Named(key.metric); {
	case s.others.asked[key], s.offers[key] != nil && s.offers[key].triggered: // that is KEDA's to answer, by what it asks here
		return false
	case s.offers[key] != nil, named, namespace == flaggerNamespace && key.metric == flaggerMetric:
		return true
	}
	return len(s.byMetric[key.name()]) > 0 && !s.others.names[key.name()]
}

// theirs says whether an HPA asks for it that is the other adapter's.
func (s *snapshot) theirs(namespace, metric string, selector labels.Selector) bool {
	return s.others.asked[offerKey{namespace, strings.ToLower(metric), hpas.Canonical(selector)}]
}

// oursOfObject is the same for the custom metrics API, where each asks with its selector. name is
// that of the object, or * for each pod.
func (s *snapshot) oursOfObject(namespace, resource, name, metric string, selector labels.Selector) bool {
	of := hpas.ObjectMetric(schema.ParseGroupResource(resource), name, metric)
	key := offerKey{namespace, of, hpas.Canonical(selector)}
	_, named := hpas.Named(metric)
	return !s.others.asked[key] && (s.offers[key] != nil || named)
}

// theirsOfObject is theirs for the custom metrics API.
func (s *snapshot) theirsOfObject(namespace, resource, name, metric string, selector labels.Selector) bool {
	of := hpas.ObjectMetric(schema.ParseGroupResource(resource), name, metric)
	return s.others.asked[offerKey{namespace, of, hpas.Canonical(selector)}]
}
