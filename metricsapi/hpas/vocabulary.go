package hpas

import (
	"slices"
	"strings"
)

// Vocabulary is what sidecars can send, as far as settings tell.
type Vocabulary struct {
	// Keeps says which metrics ingest keeps; nil: all.
	Keeps func(metric string) bool
	// Tags are labels that Telemetry resources add.
	Tags []string
	// Custom: the custom metrics API is served, so metrics of type Pods and Object are read.
	Custom bool
	// Shared: another adapter has what is not ours, also of the custom metrics API.
	Shared bool
}

// dropped says whether ingest keeps no series of the selector's metric: there is none, whatever the
// sidecars send.
func (v Vocabulary) dropped(p Part) bool {
	name := p.Metric()
	return v.Keeps != nil && name != "" && !v.Keeps(name) && !v.Keeps(baseOf(name))
}

// Metric says whether the selector may name a metric of Istio's, one that a named metric reads, or
// one that somebody asked to be kept.
func (v Vocabulary) Metric(p Part) bool {
	name := p.Metric()
	return p.Istio() || p.SentOnceUsed() || name != "" && v.asked(name)
}

// ofMesh says whether a metric is one of Istio's, or one that somebody asked to be kept.
func (v Vocabulary) ofMesh(name string) bool { return isIstioMetric(name) || v.asked(name) }

// asked says whether somebody asked for a metric by its name to be kept: who keeps all, or all that
// begins as Istio's do, has named none.
func (v Vocabulary) asked(name string) bool {
	if v.Keeps == nil {
		return false
	}
	named := func(name string) bool {
		return v.Keeps(name) && !v.Keeps("") && (!strings.HasPrefix(name, istioPrefix) || !v.Keeps(istioPrefix))
	}
	return named(name) || named(baseOf(name))
}

// Label says whether the label is Istio's, or one that somebody said is added.
func (v Vocabulary) Label(name string) bool {
	return isIstioLabel(name) || slices.Contains(v.Tags, name)
}

// istioPrefix is what the names of Istio's metrics begin with.
const istioPrefix = "istio_"

// baseOf is a histogram's name without the part of it that is asked for.
func baseOf(name string) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok {
			return base
		}
	}
	return name
}

// Never says why no sidecar will ever report the selector's metric, and what to write instead; ""
// where one may.
func (v Vocabulary) Never(p Part) string {
	if !v.dropped(p) {
		return ""
	}
	if p.Istio() {
		return "metric " + p.Metric() + " is not kept, so it is not known to be 0: widen --keep"
	}
	why := "no sidecar reports " + p.String() + " here, and none will: " + v.RemedyForMetric(p.Metric())
	if p.countsPods() {
		why += ". " + remedyForPods
	}
	return why
}
