package envoystats

import (
	"bytes"
	"errors"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/meshpulse/meshpulse/aggregator"
)

var (
	// errMalformed rejects a whole message.
	errMalformed = errors.New("not a StreamMetricsMessage: protobuf is malformed or truncated")
	errStopped   = errors.New("the process ends")
)

// maxTimestamp is the end of the year 9999: later timestamps would overflow arithmetic on them.
const maxTimestamp = 253402300799999

// span is a part of the message: [from, to).
type span struct{ from, to uint32 }

// origin is where a sample came from, for Describe.
type origin struct {
	name   span // the family's name
	metric span // the metric that holds the labels
	kind   aggregator.Kind
	group  uint32 // of scan.groups, from 1 on, that it is the sum of; 0: it came so
}

// scan is the scratch that one message is read into. It is lent to a stream for one message at a
// time, so it is as many times in memory as there are messages in work, and not once a stream.
//
// Everything that points into the message (identifier, origins) is good until the next message.
type scan struct {
	rules *scanRules
	seen  *seen
	own   *own // of who sends the message; nil while that is not known

	buf        []byte // what a message is received into
	msg        []byte
	identifier []byte // nil if the message has none
	batch      aggregator.Batch
	origins    []origin // beside batch.Samples

	refused [refusals]uint32
	kinds   [aggregator.Gauge + 1]uint32 // samples of each kind
	skipped uint32                       // families that are not read
	sizes   bool                         // there are histograms of sizes

	groups []*group // of the stream
	shared uint32   // samples that share a series

	labels []byte // labels that do not lie together, put together

	tagged map[joinedTags][]aggregator.Label // tags of joined names that were split for this message
}

// read reads a whole message. After errMalformed nothing of it may be used.
func (s *scan) read(msg []byte, seen *seen) error {
	s.msg, s.seen, s.identifier = msg, seen, nil
	seen.begin()
	s.batch.Reset()
	s.origins = s.origins[:0]
	clear(s.tagged)
	s.refused, s.kinds, s.skipped = [refusals]uint32{}, [aggregator.Gauge + 1]uint32{}, 0
	s.sizes, s.shared = false, 0
	i := 0
	for inside(msg, i) {
		tag, next := readTag(msg, i)
		switch tag {
		case messageFamily:
			if s.rules.stopped.Load() {
				return errStopped
			}
			from, end := readSpan(msg, next)
			if end == malformed || !s.family(from, end) {
				return errMalformed
			}
			i = end
		case messageIdentifier:
			var identifier []byte
			identifier, i = readBytes(msg, next)
			s.addIdentifier(identifier)
		default:
			i = skip(msg, next, tag)
		}
	}
	if i == malformed {
		return errMalformed
	}
	s.seen.sizes = s.seen.sizes || s.sizes
	if s.seen.istio { // what comes beside is another filter's
		s.refused[refusedForm] = 0
	}
	s.batch.OtherForm = s.refused[refusedForm] > 0
	for _, n := range s.refused {
		s.batch.Refused += int(n)
	}
	for _, r := range [...]refusal{refusedName, refusedLabel, refusedLabels, refusedText, refusedBuckets} {
		s.batch.RefusedAlways += int(s.refused[r])
	}
	return nil
}

// addIdentifier takes the identifier's bytes. A field that comes twice is merged, which for
// protobuf is concatenation; what is beyond maxIdentifier is refused anyway, so no more is added
// than tells that.
func (s *scan) addIdentifier(b []byte) {
	if s.identifier == nil {
		s.identifier = b[:len(b):len(b)] // what is appended goes elsewhere, not into the message
		return
	}
	s.identifier = append(s.identifier, b[:min(len(b), maxIdentifier+1-min(len(s.identifier), maxIdentifier+1))]...)
}

// family reads the family at msg[from:to]. It reports whether the bytes are well-formed.
func (s *scan) family(from, to int) bool {
	b := s.msg[:to]
	var name, metric span
	var kind dto.MetricType // COUNTER where it is missing
	metrics, i := 0, from
	for inside(b, i) {
		tag, next := readTag(b, i)
		switch tag {
		case familyName:
			f, end := readSpan(b, next)
			name, i = span{uint32(f), uint32(end)}, end
		case familyType:
			var v uint64
			v, i = readVarint(b, next)
			kind = dto.MetricType(int32(v))
		case familyMetric:
			f, end := readSpan(b, next)
			if metrics == 0 {
				metric = span{uint32(f), uint32(end)}
			}
			metrics++
			i = end
		default:
			i = skip(b, next, tag)
		}
	}
	if i == malformed {
		return false
	}
	k := kindOf(kind)
	if k == 0 || !s.keeps(s.msg[name.from:name.to]) || k == aggregator.Summary && s.seen.sizes && isSize(s.msg[name.from:name.to]) {
		s.skipped++
		if !s.seen.istio && k != 0 && k != aggregator.Gauge && s.otherForm(s.msg[name.from:name.to]) {
			s.refused[refusedForm]++
		}
		return s.batch.Timestamp != 0 || s.findTimestamp(from, to)
	}
	switch metrics {
	case 0:
		s.refused[refusedNoMetric]++
		return true
	case 1: // what Envoy sends
		return s.metric(k, name, metric)
	default:
		return s.eachMetric(from, to, func(m span) bool { return s.metric(k, name, m) })
	}
}

// kindOf returns 0 for the types that are not read.
func kindOf(t dto.MetricType) aggregator.Kind {
	switch t {
	case dto.MetricType_COUNTER:
		return aggregator.Counter
	case dto.MetricType_HISTOGRAM:
		return aggregator.Histogram
	case dto.MetricType_SUMMARY:
		return aggregator.Summary
	case dto.MetricType_GAUGE:
		return aggregator.Gauge
	}
	return 0
}

// eachMetric calls f for each metric of the well-formed family at msg[from:to] until it reports
// false.
func (s *scan) eachMetric(from, to int, f func(span) bool) bool {
	b := s.msg[:to]
	for i := from; i < to; {
		tag, next := readTag(b, i)
		if tag != familyMetric {
			i = skip(b, next, tag)
			continue
		}
		if s.rules.stopped.Load() {
			return false
		}
		m, end := readSpan(b, next)
		if !f(span{uint32(m), uint32(end)}) {
			return false
		}
		i = end
	}
	return true
}

// findTimestamp looks for the message's timestamp in a family that is not kept: an idle sidecar
// reports, too.
func (s *scan) findTimestamp(from, to int) bool {
	return s.eachMetric(from, to, func(m span) bool {
		b := s.msg[:m.to]
		var timestamp uint64
		i := int(m.from)
		for inside(b, i) {
			tag, next := readTag(b, i)
			if tag == metricTimestamp {
				timestamp, i = readVarint(b, next)
			} else {
				i = skip(b, next, tag)
			}
		}
		if i != malformed {
			s.row(int64(timestamp))
		}
		return i != malformed
	})
}

// row takes the timestamp of the message's row from the first metric that has a usable one, and
// says whether this is one.
func (s *scan) row(timestamp int64) bool {
	if timestamp <= 0 || timestamp > maxTimestamp {
		return false
	}
	if s.batch.Timestamp == 0 {
		s.batch.Timestamp = timestamp
	}
	return true
}

// metric reads one metric into the batch, or refuses it. It reports whether the bytes are
// well-formed.
func (s *scan) metric(kind aggregator.Kind, name, at span) bool {
	b := s.msg[:at.to]
	v := s.begin(kind)
	labels := labelRun{}
	var timestamp uint64
	i := int(at.from)
	for inside(b, i) {
		tag, next := readTag(b, i)
		switch tag {
		case metricLabel:
			_, end := readSpan(b, next)
			labels.add(i, end)
			i = end
		case v.tag:
			from, end := readSpan(b, next)
			if end == malformed || !s.value(&v, from, end) {
				return false
			}
			i = end
		case metricTimestamp:
			timestamp, i = readVarint(b, next)
		default:
			v.foreign = v.foreign || tag&7 == delimited
			i = skip(b, next, tag)
		}
	}
	if i == malformed || v.foreign && !s.decodes(at) {
		return false
	}
	return s.finish(&v, name, at, labels, int64(timestamp))
}

// decodes checks a metric with parts that Envoy does not send (exemplars, native buckets, values of
// another type). They are not used, but a message is only taken when the whole of it is valid.
func (s *scan) decodes(at span) bool {
	return proto.Unmarshal(s.msg[at.from:at.to], new(dto.Metric)) == nil
}

// finish turns what was read of a metric into a sample, or counts why not. It reports whether the
// labels are well-formed.
func (s *scan) finish(v *value, name, at span, labels labelRun, timestamp int64) bool {
	key := s.key(v.kind, name, at, labels)
	why := kept
	if !s.seen.has(key) {
		var ok bool
		if why, ok = s.checkNames(name, at); !ok {
			return false
		}
		if why == kept {
			s.seen.add(key)
			s.seen.istio = s.seen.istio || v.kind == aggregator.Counter && bytes.HasPrefix(bytes.TrimPrefix(s.msg[name.from:name.to], []byte(statPrefix)), []byte(istioPrefix))
		}
	}
	if !s.row(timestamp) && why == kept {
		why = refusedTimestamp
	}
	if bad := s.check(v); why == kept {
		why = bad
	}
	if why != kept {
		s.refused[why]++
		s.batch.Buckets = s.batch.Buckets[:min(v.buckets, len(s.batch.Buckets))]
		s.batch.Quantiles = s.batch.Quantiles[:min(v.quantiles, len(s.batch.Quantiles))]
		return true
	}
	first, last := v.buckets, len(s.batch.Buckets)
	if v.kind == aggregator.Summary {
		first, last = v.quantiles, len(s.batch.Quantiles)
	}
	s.batch.Samples = append(s.batch.Samples, aggregator.Sample{
		Key: key, Timestamp: timestamp, Kind: v.kind, Value: v.value, Count: v.count, First: uint32(first), Last: uint32(last),
	})
	s.origins = append(s.origins, origin{name: name, metric: at, kind: v.kind})
	s.kinds[v.kind]++
	s.sizes = s.sizes || v.kind == aggregator.Histogram && !s.seen.sizes && isSize(s.msg[name.from:name.to])
	return true
}
