package aggregator

import (
	"strings"

	"github.com/prometheus/prometheus/model/labels"
)

// namesPods reports whether the selector asks for the identity of the pods whose series it selects.
func (s *selector) namesPods() bool {
	return s.sides.destination.asked() || s.sides.source.asked() || s.asksForPod()
}

// asked reports whether the side can report what is selected and is asked for by identity.
func (s *side) asked() bool { return s.reports && len(s.identity) > 0 }

// couldBe reports whether the pod could report what is selected. Of one of a namespace that the
// author does not see only what it has reported counts.
func (s *selector) couldBe(p *Pod) bool { return s.reads.namespace(p.Namespace) && s.fits(p) }

// fits is couldBe of a pod that has reported some of it, whatever its namespace.
func (s *selector) fits(p *Pod) bool {
	d, o := &s.sides.destination, &s.sides.source
	return s.matchesPod(p) && (!d.reports && !o.reports || d.reports && d.matches(p) || o.reports && o.matches(p))
}

// mayBear reports whether series of the pod may be selected, as far as what it says of itself is in
// them, whichever end of a call it reports from: a selector that names who is called, and not who
// reports, selects what callers report too.
func (s *selector) mayBear(p *Pod) bool {
	if !s.matchesPod(p) {
		return false
	}
	reports := func(reporter string) bool {
		for _, m := range s.matchers {
			if m.Name == labelReporter && !m.Matches(reporter) {
				return false
			}
		}
		return true
	}
	return reports("destination") && s.mayBe("destination_", p) || reports("source") && s.mayBe("source_", p) || reports("waypoint")
}

// mayBe reports whether the pod may be the end of a call that the selector asks for. What a node
// does not tell, series may.
func (s *selector) mayBe(end string, p *Pod) bool {
	for _, id := range IdentityLabels {
		of := id.Of(p)
		if !id.Certain || of == "" {
			continue
		}
		for _, m := range s.matchers {
			if m.Name == end+id.Name && !m.Matches(of) {
				return false
			}
		}
	}
	return true
}

// namespace returns the one namespace whose pods can report what is selected, false if it can be
// several.
func (s *selector) namespace() (string, bool) {
	if ns, ok := s.equals(labelNamespace); ok {
		return ns, true
	}
	switch d, o := s.sides.destination.reports, s.sides.source.reports; {
	case d && !o:
		return s.equals("destination_workload_namespace")
	case o && !d:
		return s.equals("source_workload_namespace")
	}
	return "", false
}

// sides are the ends of a call, as a selector sees them.
type sides struct{ destination, source side }

// side is one end of a call.
type side struct {
	reports  bool // it can report what is selected
	identity []identityMatcher
}

// identityMatcher asks for a part of the identity of the pod at one end.
type identityMatcher struct {
	*labels.Matcher
	id *IdentityLabel
}

func (s *side) matches(p *Pod) bool {
	for i := range s.identity {
		if !s.identity[i].Matches(s.identity[i].id.Of(p)) {
			return false
		}
	}
	return true
}

// newSides tells which ends of a call can report what is selected. Without a reporter it is the
// side whose identity the selector asks for: everyone may call a service, so its callers are not
// counted as those who should report. A waypoint (reporter="waypoint") is neither end.
func newSides(metric string, ms []*labels.Matcher) sides {
	if isProxys(metric) {
		return sides{destination: ownSide(ms)}
	}
	s := sides{destination: side{reports: true}, source: side{reports: true}}
	asked := false
	for _, m := range ms {
		if m.Name == labelReporter {
			s.destination.reports = s.destination.reports && m.Matches("destination")
			s.source.reports = s.source.reports && m.Matches("source")
			asked = true
		}
		for i := range IdentityLabels {
			id := &IdentityLabels[i]
			switch m.Name {
			case "destination_" + id.Name:
				s.destination.identity = append(s.destination.identity, identityMatcher{m, id})
			case "source_" + id.Name:
				s.source.identity = append(s.source.identity, identityMatcher{m, id})
			}
		}
	}
	if !asked || s.destination.reports && s.source.reports {
		hasDestination, hasSource := len(s.destination.identity) > 0, len(s.source.identity) > 0
		if hasDestination != hasSource {
			s.destination.reports, s.source.reports = hasDestination, hasSource
		}
	}
	return s
}

// isProxys reports whether a metric is one of a sidecar's own, which tells of its pod and of no
// call: it has the labels of its pod.
func isProxys(metric string) bool {
	return strings.HasPrefix(metric, ProxyPrefix) || metric == ProxyBuild
}

// ownSide is what a selector of a metric of a sidecar's own asks for of its pod.
func ownSide(ms []*labels.Matcher) side {
	s := side{reports: true}
	for _, m := range ms {
		for i := range IdentityLabels {
			if id := &IdentityLabels[i]; id.Own != "" && m.Name == id.Own {
				s.identity = append(s.identity, identityMatcher{m, id})
			}
		}
	}
	return s
}

// ProxyPrefix is what the names of Envoy's own metrics begin with in Prometheus. ProxyBuild is the
// one of Istio's that is of the sidecar too.
const (
	ProxyPrefix = "envoy_"
	ProxyBuild  = "istio_build"
)

// Gauges of Envoy's own that say how many requests of a pod's there are now: those that it serves,
// by listener, and those of its calls that wait for a connection, by cluster. A sidecar sends them
// from the first request on, so that without one they are 0, where the node says that they are
// sent.
const (
	ActiveMetric  = "envoy_http_downstream_rq_active"
	PendingMetric = "envoy_cluster_upstream_rq_pending_active"
)

// unsent is which tables have a selector's series, of a metric of which those that have none need
// not be at 0.
type unsent struct {
	*selector
	bears map[*table]bool
}

// newUnsent returns nil for other selectors, and for one that names no pods.
func newUnsent(s *selector) *unsent {
	if s.name != ActiveMetric && s.name != PendingMetric || !s.namesPods() {
		return nil
	}
	return &unsent{s, map[*table]bool{}}
}

// by returns the metric that a pod does not send, "" if it does or has nothing to send.
func (u *unsent) by(t *table) string {
	if p := t.pod.Load(); !u.bears[t] && u.couldBe(p) && (!p.SendsActive || u.name != ActiveMetric) && (!p.SendsPending || u.name != PendingMetric) {
		return u.name
	}
	return ""
}

// IdentityLabel is a label that names a pod. Own is what it is called on metrics of the sidecar's
// own, "" where those have it otherwise: Prometheus has it of the pod there (relabel_configs of
// Istio's, which copy a pod's labels), but for the workload. Certain: it says which workload the
// pod is of, and sidecars have it from their own pod, whatever a request says.
type IdentityLabel struct {
	Name, Own string
	Of        func(*Pod) string
	Certain   bool
}

// IdentityLabels are how a series' labels name the pod at one of its ends, without the end's
// prefix.
var IdentityLabels = [...]IdentityLabel{
	{"workload", "workload", func(p *Pod) string { return p.Workload }, true},
	{"workload_namespace", "", func(p *Pod) string { return p.Namespace }, true},
	{"canonical_service", "service_istio_io_canonical_name", func(p *Pod) string { return p.CanonicalService }, true},
	{"canonical_revision", "service_istio_io_canonical_revision", func(p *Pod) string { return p.CanonicalRevision }, false},
	{"app", "app", func(p *Pod) string { return p.App }, false},
	{"version", "version", func(p *Pod) string { return p.Version }, false},
}

// equals returns the value that the selector asks a label to equal.
func (s *selector) equals(name string) (string, bool) {
	for _, m := range s.matchers {
		if m.Name == name && m.Type == labels.MatchEqual {
			return m.Value, true
		}
	}
	return "", false
}
