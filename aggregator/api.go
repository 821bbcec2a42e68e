package aggregator

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/fine"
	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// Reasons for which [Stream.Commit] drops a sample. They are also the values of the reason label of
// meshpulse_store_dropped_samples_total.
var (
	ErrSuperseded  = errors.New("another connection of the pod counts, which is newer or proves better whose it is")
	ErrDuplicate   = errors.New("series already has a sample of this timestamp")
	ErrPods        = errors.New("limit of pods reached: in all, or the sender's share of it")
	ErrSeriesLimit = errors.New("limit of series reached: in all, or the sender's share of it")
	ErrPodLimit    = errors.New("limit of the pod's series reached")
	ErrMemory      = errors.New("memory budget reached: in all, or the sender's share of it")
	ErrSharedRow   = errors.New("flushes come faster than rows are kept")
	ErrBadSeries   = errors.New("name or labels cannot be read")
	ErrOtherFlush  = errors.New("sample has another timestamp than its message")
	ErrAddress     = errors.New("the sender's address is another pod's")
	ErrIdentity    = errors.New("the sender's certificate is not the pod's")
	ErrDowngrade   = errors.New("the pod has proven with a certificate who it is, and this sender proves less")
	ErrForeignPod  = errors.New("the cluster does not know such a pod, or it has left")
)

// Pod is who reports: an Envoy's node, self-reported unless Peer is set.
type Pod struct {
	// Namespace and Name identify the pod; a table belongs to them, whatever connection they come
	// over.
	Namespace, Name string
	// Workload is the owner's name (node metadata WORKLOAD_NAME), "" if not told.
	Workload string
	// Labels are the pod's own labels (node metadata LABELS), as far as queries can ask for them:
	// app, version, service.istio.io/canonical-name, service.istio.io/canonical-revision.
	App, Version, CanonicalService, CanonicalRevision string
	// Address is that of who sends, host:port, "" if it is not known: it is held against the pod's.
	// A relay's is not the sender's, and must not stand here.
	Address string
	// ServiceAccount is the node's word, which with ProofIdentity the certificate proves.
	ServiceAccount string
	// Peer is the SPIFFE ID that mTLS has proven, "" on plaintext.
	Peer string
	// Sender is who sends, as what there is a limit of is shared out (Shares): the peer that mTLS
	// has proven, else the address without its port.
	Sender string
	// FlushInterval is the sidecar's stats_flush_interval where the node tells it, else 0 (taken as
	// 5 s until observed).
	FlushInterval time.Duration
	// EvictionInterval is the sidecar's stats_eviction_interval where the node tells it, else 0:
	// counters that it leaves out for so long begin anew.
	EvictionInterval time.Duration
	// SendsActive and SendsPending: the node says that its sidecar sends ActiveMetric and
	// PendingMetric, once there is something of them.
	SendsActive, SendsPending bool
	// InclusiveBounds: since Envoy 1.38 a histogram's bucket holds the values equal to its upper
	// bound, and a quantile's place within its bin is another (internal/fine).
	InclusiveBounds bool
	// Waypoint: the cluster knows it as one (Pods.Known). What others say that they report as a
	// waypoint does not count as that.
	Waypoint bool
	// Proof is what the connection has shown beside its address. Strict: with ProofIdentity a pod
	// that the cluster does not know is refused, but for the first ten seconds.
	Proof  Proof
	Strict bool
}

// Kind says what a sample is.
type Kind uint8

// A Histogram and a Summary of one metric share their key: they are two views of the same interval.
const (
	Counter   Kind = iota + 1 // cumulative since the process started (with Config.CountersAsDeltas: since the last flush)
	Histogram                 // the interval since the last flush; buckets cumulative along the bounds
	Summary                   // the interval since the last flush; quantiles
	Gauge                     // what there is now
)

// SummaryQuantiles are the quantiles of an Envoy summary, in this order (Envoy:
// source/common/stats/histogram_impl.cc).
var SummaryQuantiles = fine.Quantiles

// Sizes are Istio's histograms of bytes. Beside their buckets they have no finer view: nobody
// scales by it, and it would be a seventh of a label set's memory and a twentieth of a flush's CPU.
var Sizes = [...]string{"istio_request_bytes", "istio_response_bytes"}

// Sample is one family of a message with its one metric. It holds no pointers: a batch is reused
// from message to message.
type Sample struct {
	// Key is a seeded hash of the family's name and labels as they are on the wire; equal keys are
	// the same series.
	Key uint64
	// Timestamp is the flush's timestamp_ms by the sidecar's clock: the batch's, or the sample is
	// refused.
	Timestamp int64
	Kind      Kind
	// Value is a counter's or gauge's value, else the interval's sum in the metric's unit.
	Value float64
	// Count is the interval's number of observations, MaxIntervalCount at most; 0 for a counter or
	// a gauge.
	Count uint64
	// First and Last delimit Batch.Buckets[First:Last] of a histogram or
	// Batch.Quantiles[First:Last] of a summary.
	First, Last uint32
}

// MaxIntervalCount is the largest count of an interval: 85 million requests a second at a flush of
// 25 s.
const MaxIntervalCount = ring.MaxIntervalCount

// Bucket is one bucket of an interval histogram. The +Inf bucket is not sent; it is Sample.Count.
type Bucket = ring.Bucket

// Batch is a whole valid message: the scratch of one stream.
type Batch struct {
	// Timestamp is that of the message's first family, and of all: Envoy stamps a flush once. It is
	// a row even where no sample is kept: an idle sidecar reports.
	Timestamp int64
	Samples   []Sample
	Buckets   []Bucket
	Quantiles []float64 // values at SummaryQuantiles, NaN where the interval is empty
	// Space, where it is not 0, says that keys mean the same name and labels in all batches of this
	// space, whichever stream sends them: what one pod has shown is then known of the next and not
	// described again. At 0 keys are the stream's own.
	Space uint64
	// Asked is what Stream.Asked returned before the message was read.
	Asked *Asked
	// Stopped is set once the process ends: nobody waits for the rest of a large batch. Nil is
	// never.
	Stopped *atomic.Bool
	// Refused counts samples that were dropped before they reached the batch (bad values, limits of
	// the wire scan).
	Refused int
	// OtherForm: some of them are Istio's metrics under names that are not read, and none came that
	// is. Nothing is known of the pod's requests then, though it reports.
	OtherForm bool
	// RefusedAlways are those of them whose name, labels or number of buckets was refused, and so
	// is whenever they come: each of the others may be of a series that is known.
	RefusedAlways int
}

// Reset empties the batch and keeps its memory, its Space, Asked and Stopped.
func (b *Batch) Reset() {
	b.Timestamp, b.Refused, b.RefusedAlways, b.OtherForm = 0, 0, 0, false
	b.Samples, b.Buckets, b.Quantiles = b.Samples[:0], b.Buckets[:0], b.Quantiles[:0]
}

// MisreadTags is the label that holds what a sender says of itself and others know better, so that
// series which differ in it alone stay apart.
const MisreadTags = "misread_tags"

// Label is a label of a series.
type Label struct{ Name, Value string }

// Describer decodes the name and labels of the batch's i-th sample. It is asked once per new
// series, of a pod or of Batch.Space. The name is the metric's own, without Istio's stat prefix;
// labels need not be sorted and end at their first use: the store copies them.
type Describer interface {
	Describe(i int) (name string, labels []Label, err error)
}
