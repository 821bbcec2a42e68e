package metricsapi

import (
	"slices"
	"strings"
)

// vocabulary is what sidecars can send, as far as settings tell.
type vocabulary struct {
	// keeps says which metrics ingest keeps; nil: all.
	keeps func(metric string) bool
	// tags are labels that Telemetry resources add.
	tags []string
}

// dropped says whether ingest keeps no series of the selector's metric: there is none, whatever the sidecars send.
func (v vocabulary) dropped(p part) bool {
	name := p.metric()
	return v.keeps != nil && name != "" && !v.keeps(name) && !v.keeps(baseOf(name))
}

// metric says whether the selector may name a metric of Istio's, or one that somebody asked to be kept: who keeps all, or all that begins
// as Istio's do, has named none.
func (v vocabulary) metric(p part) bool {
	asked := func(name string) bool {
		return v.keeps(name) && !v.keeps("") && (!strings.HasPrefix(name, istioPrefix) || !v.keeps(istioPrefix))
	}
	name := p.metric()
	return p.istio() || v.keeps != nil && name != "" && (asked(name) || asked(baseOf(name)))
}

// label says whether the label is Istio's, or one that somebody said is added.
func (v vocabulary) label(name string) bool {
	return isIstioLabel(name) || slices.Contains(v.tags, name)
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

// never says why no sidecar will ever report the selector's metric, and what to write instead; "" where one
// may.
func (v vocabulary) never(p part) string {
	if !v.dropped(p) {
		return ""
	}
	if p.istio() {
		return "metric " + p.metric() + " is not kept, so it is not known to be 0: widen --keep"
	}
	why := "no sidecar reports " + p.String() + " here, and none will: " + v.remedyForMetric(p.metric())
	if p.countsPods() {
		why += ". " + remedyForPods
	}
	return why
}
