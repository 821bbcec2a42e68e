package envoystats

import (
	"fmt"
	"math"
	"strings"

	"github.com/meshpulse/meshpulse/aggregator"
)

// refusal is why a sample is dropped; its text is a reason label of
// meshpulse_ingest_dropped_samples_total.
type refusal uint8

const (
	kept refusal = iota
	refusedNoMetric
	refusedNoValue
	refusedTimestamp
	refusedCounter
	refusedGauge
	refusedSum
	refusedCounts
	refusedCount
	refusedBounds
	refusedQuantiles
	refusedBuckets
	refusedName
	refusedLabel
	refusedLabels
	refusedText
	refusedForm
	refusals
)

func (r refusal) String() string {
	return [refusals]string{
		kept:             "",
		refusedNoMetric:  "no_metric",        // a family without metrics
		refusedNoValue:   "no_value",         // a metric without a value of its family's type
		refusedTimestamp: "timestamp",        // missing, negative or past the year 9999
		refusedCounter:   "counter_value",    // NaN, infinite or negative
		refusedGauge:     "gauge_value",      // NaN or infinite
		refusedSum:       "sum",              // NaN, infinite or negative
		refusedCounts:    "bucket_counts",    // shrinking along the bounds, or more than the histogram's own
		refusedCount:     "interval_count",   // 2^31 or more in one interval
		refusedBounds:    "bucket_bounds",    // NaN or not ascending
		refusedQuantiles: "quantiles",        // not Envoy's ten, descending, infinite, negative, or NaN in spite of samples
		refusedBuckets:   "too_many_buckets", // Config.MaxBuckets
		refusedName:      "name_too_long",    // Config.MaxNameBytes
		refusedLabel:     "label_too_long",   // Config.MaxLabelBytes
		refusedLabels:    "too_many_labels",  // Config.MaxLabels
		refusedText:      "not_utf8",         // in the name or a label
		refusedForm:      "other_form",       // Istio's metrics under names that are not read (otherForm), whole families
	}[r]
}

// why names the reasons for which samples of the message were refused.
func (s *scan) why() string {
	var reasons []string
	for r := kept + 1; r < refusals; r++ {
		if n := s.refused[r]; n > 0 {
			reasons = append(reasons, fmt.Sprintf("%d %s", n, r))
		}
	}
	return strings.Join(reasons, ", ")
}

// value is a metric's value while it is read. A field that comes twice is merged as protobuf
// merges: the last scalar counts, repeated parts append.
type value struct {
	kind    aggregator.Kind
	tag     uint32 // of the metric's field that holds a value of this kind
	present bool
	foreign bool // there are parts that are not read

	value float64 // a counter's or gauge's value or the sum
	count uint64

	// buckets and quantiles are where this metric's begin in the batch.
	buckets, quantiles int
	why                refusal // what is wrong with the buckets or quantiles
	bound              float64 // of the last bucket
	below              uint64  // count of the last bucket
}

// begin starts a metric of the kind.
func (s *scan) begin(kind aggregator.Kind) value {
	v := value{kind: kind, buckets: len(s.batch.Buckets), quantiles: len(s.batch.Quantiles), bound: math.Inf(-1)}
	switch kind {
	case aggregator.Counter:
		v.tag = metricCounter
	case aggregator.Histogram:
		v.tag = metricHistogram
	case aggregator.Summary:
		v.tag = metricSummary
	case aggregator.Gauge:
		v.tag = metricGauge
	}
	return v
}

// value reads the value at msg[from:to]. It reports whether the bytes are well-formed.
func (s *scan) value(v *value, from, to int) bool {
	v.present = true
	if v.kind == aggregator.Counter || v.kind == aggregator.Gauge {
		return s.number(v, from, to)
	}
	return s.distribution(v, from, to)
}

// number reads a counter or a gauge, which are alike.
func (s *scan) number(v *value, from, to int) bool {
	b := s.msg[:to]
	i := from
	for inside(b, i) {
		tag, next := readTag(b, i)
		if tag == counterValue {
			v.value, i = readDouble(b, next)
		} else {
			v.foreign = v.foreign || tag&7 == delimited
			i = skip(b, next, tag)
		}
	}
	return i != malformed
}

func (s *scan) distribution(v *value, from, to int) bool {
	b := s.msg[:to]
	i := from
	for inside(b, i) {
		tag, next := readTag(b, i)
		switch tag {
		case sampleView:
			if v.kind == aggregator.Histogram {
				if i = s.plainBuckets(v, b, i); i < next {
					i = s.bucket(v, b, next)
				}
			} else {
				i = s.quantile(v, b, next)
			}
		case sampleCount:
			v.count, i = readVarint(b, next)
		case sampleSum:
			v.value, i = readDouble(b, next)
		default:
			v.foreign = v.foreign || tag&7 == delimited
			i = skip(b, next, tag)
		}
	}
	return i != malformed
}

// plainBuckets reads the plain buckets that follow each other into the batch, up to the first with
// which there is something else to be done, and returns the index of that. The first one's tag is
// at b[i].
func (s *scan) plainBuckets(v *value, b []byte, i int) (next int) {
	if v.why != kept {
		return i
	}
	buckets, bound, below := s.batch.Buckets, v.bound, v.below
	for most := v.buckets + s.rules.maxBuckets; i < len(b) && b[i] == byte(sampleView) && len(buckets) < most; {
		k, next, ok := shortBucket(b, i+1)
		if !ok {
			k, next, ok = plainBucket(b, i+1)
		}
		if !ok || !(k.UpperBound > bound && k.UpperBound <= math.MaxFloat64) || k.Count < below {
			break
		}
		buckets = append(buckets, k)
		bound, below, i = k.UpperBound, k.Count, next
	}
	s.batch.Buckets, v.bound, v.below = buckets, bound, below
	return i
}

// bucket reads any bucket whose length is at b[i] into the batch, and returns the index behind it.
// A +Inf bucket, which Envoy does not send, is checked and left out.
func (s *scan) bucket(v *value, b []byte, i int) (next int) {
	e, next := readEntry(v, b, i)
	if next == malformed {
		return malformed
	}
	k := aggregator.Bucket{UpperBound: e.second, Count: e.count}
	switch {
	case v.why != kept:
		return next
	case !(k.UpperBound > v.bound): // NaN, too
		v.why = refusedBounds
	case k.Count < v.below:
		v.why = refusedCounts
	case len(s.batch.Buckets)-v.buckets == s.rules.maxBuckets:
		v.why = refusedBuckets
	case !math.IsInf(k.UpperBound, 1):
		s.batch.Buckets = append(s.batch.Buckets, k)
	}
	v.bound, v.below = k.UpperBound, k.Count
	return next
}

// entry is a bucket, which has a count and in the second place its bound, or a quantile, which has
// what it is of in the first place and its value in the second.
type entry struct {
	count         uint64
	first, second float64
}

// readEntry reads any bucket or quantile: their fields are told apart by number and type. That it
// calls nothing for a field is 6 % of a flush whose labels are labels (BenchmarkMessage).
func readEntry(v *value, b []byte, i int) (e entry, next int) {
	from, next := readSpan(b, i)
	if next == malformed {
		return e, malformed
	}
	b, i = b[:next], from
	for inside(b, i) {
		tag, at := readTag(b, i)
		switch tag {
		case bucketCount:
			e.count, i = readVarint(b, at)
		case quantileQ:
			e.first, i = readDouble(b, at)
		case bucketBound: // and quantileValue
			e.second, i = readDouble(b, at)
		default:
			v.foreign = v.foreign || tag&7 == delimited
			i = skip(b, at, tag)
		}
	}
	return e, i
}

// quantile reads the quantile whose length is at b[i] into the batch, and returns the index behind
// it. They have to be Envoy's, in their order.
func (s *scan) quantile(v *value, b []byte, i int) (next int) {
	q, at, next, ok := plainQuantile(b, i)
	if !ok {
		var e entry
		if e, next = readEntry(v, b, i); next == malformed {
			return malformed
		}
		q, at = e.first, e.second
	}
	n := len(s.batch.Quantiles) - v.quantiles
	if n == len(aggregator.SummaryQuantiles) || q != aggregator.SummaryQuantiles[n] {
		v.why = refusedQuantiles
	}
	if v.why == kept {
		s.batch.Quantiles = append(s.batch.Quantiles, at)
	}
	return next
}

// check says whether a value that was read can be used.
func (s *scan) check(v *value) refusal {
	usable := v.value >= 0 && !math.IsInf(v.value, 1) // NaN is not
	switch {
	case !v.present:
		return refusedNoValue
	case v.kind == aggregator.Gauge && (math.IsNaN(v.value) || math.IsInf(v.value, 0)):
		return refusedGauge
	case v.kind == aggregator.Gauge:
		return kept
	case v.kind == aggregator.Counter && !usable:
		return refusedCounter
	case v.kind == aggregator.Counter:
		return kept
	case !usable:
		return refusedSum
	case v.why != kept:
		return v.why
	case v.count < v.below:
		return refusedCounts
	case v.count > aggregator.MaxIntervalCount:
		return refusedCount
	case v.kind == aggregator.Summary && !usableQuantiles(s.batch.Quantiles[v.quantiles:], v.count):
		return refusedQuantiles
	}
	return kept
}

// usableQuantiles says whether the values at SummaryQuantiles can be those of count observations.
// Of none, all are NaN.
func usableQuantiles(values []float64, count uint64) bool {
	if len(values) != len(aggregator.SummaryQuantiles) {
		return false
	}
	last := 0.0
	for _, v := range values {
		if math.IsNaN(v) && count == 0 {
			continue
		}
		if !(v >= last) || math.IsInf(v, 1) {
			return false
		}
		last = v
	}
	return true
}
