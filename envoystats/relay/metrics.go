package relay

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshpulse/meshpulse/envoystats/fleet"
)

// metrics are the package's own.
type metrics struct {
	sentFrames, sentBytes, receivedFrames, receivedBytes *prometheus.CounterVec // by replica
	drops                                                *prometheus.CounterVec // by replica and reason
	refused, unconnected                                 prometheus.Counter
}

// Why messages are not relayed: values of the reason label of meshpulse_relay_dropped_frames_total.
const (
	droppedFull   = "full"   // its queue is
	droppedOld    = "old"    // it has waited for longer than tooOld
	droppedBroken = "broken" // the connection was, as it was to be sent
)

func dropReasons() []string { return []string{droppedFull, droppedOld, droppedBroken} }

func newMetrics(r prometheus.Registerer, of *Replicas) (*metrics, error) {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Name: name, Help: help}
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(opts(name, help), append([]string{"replica"}, labels...))
	}
	m := &metrics{
		sentFrames:     vec("meshpulse_relay_sent_frames_total", "Messages of sidecars that were relayed to a replica."),
		sentBytes:      vec("meshpulse_relay_sent_bytes_total", "Bytes of the messages that were relayed to a replica, compressed."),
		receivedFrames: vec("meshpulse_relay_received_frames_total", "Messages of sidecars that a replica has relayed."),
		receivedBytes:  vec("meshpulse_relay_received_bytes_total", "Bytes of the messages that a replica has relayed, compressed."),
		drops:          vec("meshpulse_relay_dropped_frames_total", "Messages that a replica keeps and did not get, by reason: a gap of their pods there.", "reason"),
		refused:        prometheus.NewCounter(opts("meshpulse_relay_refused_frames_total", "What replicas have sent that cannot be read, or is of a stream that was refused here.")),
		unconnected:    prometheus.NewCounter(opts("meshpulse_relay_refused_connections_total", "Connections to the replicas' port that were closed at once: more were open, in all or from their address, than replicas need.")),
	}
	if r == nil {
		return m, nil
	}
	all := []prometheus.Collector{m.sentFrames, m.sentBytes, m.receivedFrames, m.receivedBytes, m.drops, m.refused, m.unconnected, &standing{of}}
	if of.config.TLS != nil {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "meshpulse_relay_certificate_expires_timestamp_seconds",
			Help: "When the certificate ends that this replica shows the others, in seconds since 1970.",
		}, func() float64 { return float64(of.config.TLS.expires().Unix()) }))
	}
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) sent(replica string, bytes int) {
	m.sentFrames.WithLabelValues(replica).Inc()
	m.sentBytes.WithLabelValues(replica).Add(float64(bytes))
}

func (m *metrics) received(replica string, bytes int) {
	m.receivedFrames.WithLabelValues(replica).Inc()
	m.receivedBytes.WithLabelValues(replica).Add(float64(bytes))
}

func (m *metrics) dropped(replica, reason string) { m.drops.WithLabelValues(replica, reason).Inc() }

// begin counts from 0, so that the first drop is an increase.
func (m *metrics) begin(replica string) {
	for _, reason := range dropReasons() {
		m.drops.WithLabelValues(replica, reason)
	}
}

// forget takes a replica out that is gone.
func (m *metrics) forget(replica string) {
	of := prometheus.Labels{"replica": replica}
	for _, v := range []*prometheus.CounterVec{m.sentFrames, m.sentBytes, m.receivedFrames, m.receivedBytes, m.drops} {
		v.DeletePartialMatch(of)
	}
}

// standing is how the replicas stand.
type standing struct{ of *Replicas }

var (
	membersDesc = prometheus.NewDesc("meshpulse_relay_replicas", "Replicas that there are, this one among them, by state.", []string{"state"}, nil)
	silentDesc  = prometheus.NewDesc("meshpulse_relay_silent_seconds", "Seconds since a replica was last heard of, at most an hour. One that is silent for 1 is not asked, for 3 does not act.", []string{"replica"}, nil)
	queuedDesc  = prometheus.NewDesc("meshpulse_relay_queued_bytes", "Bytes that wait to be sent to a replica.", []string{"replica"}, nil)
)

// Describe is part of [prometheus.Collector].
func (*standing) Describe(ch chan<- *prometheus.Desc) {
	ch <- membersDesc
	ch <- silentDesc
	ch <- queuedDesc
}

// Collect is part of [prometheus.Collector].
func (s *standing) Collect(ch chan<- prometheus.Metric) {
	now := s.of.current.Load()
	counts := map[fleet.State]int{}
	for _, m := range now.members {
		counts[m.State]++
	}
	for _, state := range fleet.States() {
		ch <- prometheus.MustNewConstMetric(membersDesc, prometheus.GaugeValue, float64(counts[state]), state.String())
	}
	for name, p := range now.peers {
		silent := min(p.silent(s.of.config.Now()), time.Hour)
		ch <- prometheus.MustNewConstMetric(silentDesc, prometheus.GaugeValue, silent.Seconds(), name)
		ch <- prometheus.MustNewConstMetric(queuedDesc, prometheus.GaugeValue, float64(p.queued.Load()), name)
	}
}
