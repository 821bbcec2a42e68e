package envoystats

import (
	"bytes"
	"hash/maphash"
	"sync/atomic"

	"github.com/meshpulse/meshpulse/aggregator"
)

// durationMetric is scanned whatever is kept: a counter's past is taken from its interval counts.
const durationMetric = "istio_request_duration_milliseconds"

// statPrefix is what Istio's stats filter puts before its metrics' names (istio/istio
// pilot/pkg/networking/core/listener_builder and Envoy's stats filter: stat_prefix).
const statPrefix = "istiocustom."

// istioPrefix is what Istio's metrics begin with in the forms that are read.
const istioPrefix = "istio_"

// scanRules is what a server's streams share. It is never written after it was made.
type scanRules struct {
	keep       [][]byte // of names on the wire
	proxy      []proxyMetric
	maxName    int
	maxLabel   int
	maxLabels  int
	maxBuckets int

	callerSeries int
	deltas       bool // counters are intervals
	names        nameParser
	tags         []tagRule // of Envoy's own stats
	// Counters, distributions and gauges are hashed under seeds of their own, so a counter and a
	// histogram of one name and labels differ. Names and labels are hashed apart and xored, so none
	// of the four seeds may be shared.
	counterSeed, distributionSeed, gaugeSeed, labelSeed maphash.Seed
	ownSeed                                             maphash.Seed // of own.space

	stopped *atomic.Bool // once it is set nobody waits for a message any more, however large
}

// keeps says whether a family of this name is read: for whoever asks, or for what is asked of the
// pod.
func (s *scan) keeps(name []byte) bool {
	name = bytes.TrimPrefix(name, []byte(statPrefix))
	for _, prefix := range s.rules.keep {
		if bytes.HasPrefix(name, prefix) {
			return true
		}
	}
	return s.batch.Asked.Has(name) || len(s.rules.proxy) > 0 && s.keepsProxys(name)
}

// otherForm says whether a family that is not kept is one of Istio's metrics all the same, under a
// name that is not read: as Istio up to 1.17 had it
// (wasmcustom.reporter=.=destination;.;…;.;istio_requests_total), or with another stats prefix
// (mesh.istiocustom.istio_…). It is asked of sidecars only of which no request counter has been
// read: with those it is known that there is nothing to look for.
func (s *scan) otherForm(name []byte) bool {
	name = bytes.TrimPrefix(name, []byte(statPrefix))
	if bytes.HasPrefix(name, []byte(istioPrefix)) {
		return false // a form that is read; it is not kept
	}
	for {
		i := bytes.Index(name, []byte(istioPrefix))
		if i < 0 {
			return false
		}
		name = name[i+len(istioPrefix):]
		for _, metric := range []string{"requests_total", "request_duration_milliseconds", "request_bytes", "response_bytes", "request_messages_total", "response_messages_total", "tcp_"} {
			if bytes.HasPrefix(name, []byte(metric)) {
				return true
			}
		}
	}
}

// isSize says whether a family is one of aggregator.Sizes, whose summaries tell nothing new beside
// their histograms.
func isSize(name []byte) bool {
	name = bytes.TrimPrefix(name, []byte(statPrefix))
	for _, size := range aggregator.Sizes {
		if rest, ok := bytes.CutPrefix(name, []byte(size)); ok && (len(rest) == 0 || rest[0] == '.') {
			return true
		}
	}
	return false
}
