package envoystats

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshpulse/meshpulse/aggregator"
)

// metrics are the sink's own. They are written once a message, from sums that its scan keeps.
type metrics struct {
	messages, bytes, skipped prometheus.Counter
	streams                  *prometheus.GaugeVec
	connections              prometheus.Gauge
	refusals                 *prometheus.CounterVec
	throttled, shared        prometheus.Counter
	closed                   *prometheus.CounterVec
	ends                     *prometheus.CounterVec
	rejected                 *prometheus.CounterVec
	samples                  [aggregator.Gauge + 1]prometheus.Counter
	dropped                  [refusals]prometheus.Counter
}

// Why streams end: values of the reason label of meshpulse_ingest_stream_ends_total.
const (
	endClosed     = "closed"     // the sender half-closed, as replay does and Envoy never does
	endLost       = "lost"       // reset or connection gone: how an Envoy that stops ends
	endNode       = "node"       // no node, or one that names no pod, or another one
	endAddress    = "address"    // its address is another pod's than it says it is
	endIdentity   = "identity"   // what it proves is not enough, or another pod's: identityReasons
	endExpired    = "expired"    // its certificate has ended
	endRenewed    = "renewed"    // it comes back with a new certificate
	endFault      = "fault"      // a panic while a message was taken
	endFirst      = "malformed"  // the first message cannot be read, so it is not known who reports
	endTooLarge   = "too_large"  // a message beyond Config.MaxMessageBytes
	endCompressed = "compressed" // says that its messages are
	endLimit      = "limit"      // beyond Config.MaxStreams
	endDraining   = "draining"   // Shutdown
	endTransport  = "transport"  // anything else that gRPC refuses, such as an unknown compression
	rejectedWire  = "malformed"  // values of the reason label of meshpulse_ingest_rejected_messages_total
	rejectedSize  = "too_large"  //
	rejectedOld   = "superseded" // the pod has a newer stream
)

// Values of the security label of meshpulse_ingest_streams.
const (
	securityNone   = "plaintext"
	securityTLS    = "tls"
	securityMutual = "mtls"
)

// What a log line about a limit gives as its reason, beside the above.
const (
	limitPodSeries = "pod_series_limit" // as meshpulse_store_dropped_samples_total has it
	limitSeries    = "series_limit"     //
	limitPods      = "pods"             //
	limitMemory    = "memory_budget"    //
	limitForeign   = "foreign_pod"      //
	limitRows      = "shared_rows"      // meshpulse_store_shared_rows_total
	limitCallers   = "caller_values"    // meshpulse_ingest_shared_samples_total
	limitPace      = "throttled"        // meshpulse_ingest_throttled_messages_total
	limitForm      = "other_form"       // meshpulse_ingest_dropped_samples_total
	limitSamples   = "refused_samples"  // meshpulse_ingest_dropped_samples_total
)

func newMetrics(r prometheus.Registerer, cs *connections) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "meshpulse", Subsystem: "ingest", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	vec := func(name, help, label string, values ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts(opts(name, help)), []string{label})
		for _, value := range values { // at 0, so that the first of each is an increase
			c.WithLabelValues(value)
		}
		return c
	}
	m := &metrics{
		messages: counter("messages_total", "Messages received."),
		bytes:    counter("bytes_total", "Bytes of the messages received."),
		skipped:  counter("skipped_families_total", "Families that are not read: gauges, what --keep leaves out, summaries of sizes beside their histograms."),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("streams", "Open streams: in plaintext, over TLS with nothing compared, or over "+
			"mutual TLS, whose identity is held against the pod.")), []string{"security"}),
		refusals:    vec("identity_refusals_total", "Streams that were refused for what their sender proves, or does not, by reason.", "reason", identityReasons...),
		connections: prometheus.NewGauge(prometheus.GaugeOpts(opts("connections", "Open connections."))),
		throttled:   counter("throttled_messages_total", "Messages after which their stream had to wait: it sends more than it may."),
		shared:      counter("shared_samples_total", "Samples that share a series, since their pod has too many whose label values its callers choose."),
		closed: vec("closed_connections_total", "Connections that the sink closed or refused, by reason.", "reason",
			closedLimit, closedHandshake, closedSilent, closedSlow, closedPending, closedFlood, closedNothing, closedCertificate, closedRoot, closedRefused),
		ends: vec("stream_ends_total", "Streams that ended, by reason.", "reason", endClosed, endLost, endNode, endFirst, endTooLarge, endCompressed,
			endLimit, endDraining, endTransport, endFault, endAddress, endIdentity, endExpired, endRenewed),
		rejected: vec("rejected_messages_total", "Messages of which nothing was applied, by reason.", "reason", rejectedWire, rejectedSize, rejectedOld),
	}
	samples := vec("samples_total", "Samples handed to the store, by kind.", "kind")
	m.samples[aggregator.Counter] = samples.WithLabelValues("counter")
	m.samples[aggregator.Histogram] = samples.WithLabelValues("histogram")
	m.samples[aggregator.Summary] = samples.WithLabelValues("summary")
	m.samples[aggregator.Gauge] = samples.WithLabelValues("gauge")
	dropped := vec("dropped_samples_total", "Samples that were refused, by reason.", "reason")
	for r := kept + 1; r < refusals; r++ {
		m.dropped[r] = dropped.WithLabelValues(r.String())
	}
	for _, security := range []string{securityNone, securityTLS, securityMutual} {
		m.streams.WithLabelValues(security)
	}
	if r == nil {
		return m, nil
	}
	pending := prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("pending_bytes", "Bytes that messages take which have not been taken whole.")),
		func() float64 { return float64(cs.pending.Load()) })
	for _, c := range []prometheus.Collector{pending, m.messages, m.bytes, m.skipped, m.streams, m.refusals, m.connections, m.throttled, m.shared, m.closed, m.ends, m.rejected, samples, dropped} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// applied adds up what a message that was read held.
func (m *metrics) applied(s *scan) {
	m.skipped.Add(float64(s.skipped))
	if s.shared > 0 {
		m.shared.Add(float64(s.shared))
	}
	for kind := aggregator.Counter; kind <= aggregator.Gauge; kind++ {
		m.samples[kind].Add(float64(s.kinds[kind]))
	}
	if s.batch.Refused == 0 {
		return
	}
	for r := kept + 1; r < refusals; r++ {
		m.dropped[r].Add(float64(s.refused[r]))
	}
}
