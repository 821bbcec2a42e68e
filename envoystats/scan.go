package envoystats

import (
	"bytes"
	"errors"
	"hash/maphash"
	"sync/atomic"
	"unicode/utf8"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/meshpulse/meshpulse/aggregator"
)

var (
	// errMalformed rejects a whole message.
	errMalformed = errors.New("not a StreamMetricsMessage: protobuf is malformed or truncated")
	errStopped   = errors.New("the process ends")
)

// durationMetric is scanned whatever is kept: a counter's past is taken from its interval counts.
const durationMetric = "istio_request_duration_milliseconds"

// statPrefix is what Istio's stats filter puts before its metrics' names (istio/istio
// pilot/pkg/networking/core/listener_builder and Envoy's stats filter: stat_prefix).
const statPrefix = "istiocustom."

// istioPrefix is what Istio's metrics begin with in the forms that are read.
const istioPrefix = "istio_"

// maxTimestamp is the end of the year 9999: later timestamps would overflow arithmetic on them.
const maxTimestamp = 253402300799999

// scanRules is what a server's streams share. It is never written after it was made.
type scanRules struct {
	keep       [][]byte
	maxName    int
	maxLabel   int
	maxLabels  int
	maxBuckets int

	callerSeries int
	deltas       bool // counters are intervals
	names        nameParser
	// Counters and distributions are hashed under seeds of their own, so a counter and a histogram of one name and
	// labels differ. Names and labels are hashed apart and xored, so none of the three seeds may be shared.
	counterSeed, distributionSeed, labelSeed maphash.Seed
	ownSeed                                  maphash.Seed // of own.space

	stopped *atomic.Bool // once it is set nobody waits for a message any more, however large
}

// keeps says whether a family of this name is read.
func (r *scanRules) keeps(name []byte) bool {
	name = bytes.TrimPrefix(name, []byte(statPrefix))
	for _, prefix := range r.keep {
		if bytes.HasPrefix(name, prefix) {
			return true
		}
	}
	return bytes.HasPrefix(name, []byte(durationMetric))
}

// otherForm says whether a family that is not kept is one of Istio's metrics all the same, under a name that is not read: as Istio up to
// 1.17 had it (wasmcustom.reporter=.=destination;.;…;.;istio_requests_total), or with another stats prefix (mesh.istiocustom.istio_…). It
// is asked of sidecars only of which no request counter has been read: with those it is known that there is nothing to look for.
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

// isSize says whether a family is one of aggregator.Sizes, whose summaries tell nothing new beside their histograms.
func isSize(name []byte) bool {
	name = bytes.TrimPrefix(name, []byte(statPrefix))
	for _, size := range aggregator.Sizes {
		if rest, ok := bytes.CutPrefix(name, []byte(size)); ok && (len(rest) == 0 || rest[0] == '.') {
			return true
		}
	}
	return false
}

// span is a part of the message: [from, to).
type span struct{ from, to uint32 }

// origin is where a sample came from, for Describe.
type origin struct {
	name   span // the family's name
	metric span // the metric that holds the labels
	kind   aggregator.Kind
	group  uint32 // of scan.groups, from 1 on, that it is the sum of; 0: it came so
}

// scan is the scratch that one message is read into. It is lent to a stream for one message at a time, so it is as many
// times in memory as there are messages in work, and not once a stream.
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
	kinds   [aggregator.Summary + 1]uint32 // samples of each kind
	skipped uint32                         // families that are not read
	sizes   bool                           // there are histograms of sizes

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
	s.refused, s.kinds, s.skipped = [refusals]uint32{}, [aggregator.Summary + 1]uint32{}, 0
	s.sizes, s.shared = false, 0
	for i := 0; i < len(msg); {
		tag, next := readTag(msg, i)
		if next == malformed {
			return errMalformed
		}
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
			from, end := readSpan(msg, next)
			if end == malformed {
				return errMalformed
			}
			s.addIdentifier(msg[from:end])
			i = end
		default:
			if i = skip(msg, next, tag); i == malformed {
				return errMalformed
			}
		}
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

// addIdentifier takes the identifier's bytes. A field that comes twice is merged, which for protobuf is concatenation; what is beyond
// maxIdentifier is refused anyway, so no more is added than tells that.
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
	metrics := 0
	for i := from; i < to; {
		tag, next := readTag(b, i)
		if next == malformed {
			return false
		}
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
		if i == malformed {
			return false
		}
	}
	k := kindOf(kind)
	if k == 0 || !s.rules.keeps(s.msg[name.from:name.to]) || k == aggregator.Summary && s.seen.sizes && isSize(s.msg[name.from:name.to]) {
		s.skipped++
		if !s.seen.istio && k != 0 && s.otherForm(s.msg[name.from:name.to]) {
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
	}
	return 0
}

// eachMetric calls f for each metric of the well-formed family at msg[from:to] until it reports false.
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

// findTimestamp looks for the message's timestamp in a family that is not kept: an idle sidecar reports, too.
func (s *scan) findTimestamp(from, to int) bool {
	return s.eachMetric(from, to, func(m span) bool {
		b := s.msg[:m.to]
		var timestamp uint64
		for i := int(m.from); i < len(b); {
			tag, next := readTag(b, i)
			if next == malformed {
				return false
			}
			if tag == metricTimestamp {
				timestamp, i = readVarint(b, next)
			} else {
				i = skip(b, next, tag)
			}
			if i == malformed {
				return false
			}
		}
		s.row(int64(timestamp))
		return true
	})
}

// row takes the timestamp of the message's row from the first metric that has a usable one, and says whether this is one.
func (s *scan) row(timestamp int64) bool {
	if timestamp <= 0 || timestamp > maxTimestamp {
		return false
	}
	if s.batch.Timestamp == 0 {
		s.batch.Timestamp = timestamp
	}
	return true
}

// metric reads one metric into the batch, or refuses it. It reports whether the bytes are well-formed.
func (s *scan) metric(kind aggregator.Kind, name, at span) bool {
	b := s.msg[:at.to]
	v := s.begin(kind)
	labels := labelRun{}
	var timestamp uint64
	for i := int(at.from); i < len(b); {
		tag, next := readTag(b, i)
		if next == malformed {
			return false
		}
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
		if i == malformed {
			return false
		}
	}
	if v.foreign && !s.decodes(at) {
		return false
	}
	return s.finish(&v, name, at, labels, int64(timestamp))
}

// decodes checks a metric with parts that Envoy does not send (exemplars, native buckets, values of another type). They
// are not used, but a message is only taken when the whole of it is valid.
func (s *scan) decodes(at span) bool {
	return proto.Unmarshal(s.msg[at.from:at.to], new(dto.Metric)) == nil
}

// finish turns what was read of a metric into a sample, or counts why not. It reports whether the labels are well-formed.
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

// labelRun is where a metric's label fields lie.
type labelRun struct {
	from, to int  // the first run of them, tags included
	more     bool // they do not all lie together
}

func (r *labelRun) add(from, to int) {
	switch r.to {
	case 0:
		r.from, r.to = from, to
	case from:
		r.to = to
	default:
		r.more = true
	}
}

// key hashes a metric's name and labels as they are on the wire.
func (s *scan) key(kind aggregator.Kind, name, at span, labels labelRun) uint64 {
	seed := s.rules.distributionSeed
	if kind == aggregator.Counter {
		seed = s.rules.counterSeed
	}
	key := maphash.Bytes(seed, s.msg[name.from:name.to])
	switch {
	case labels.more:
		key ^= maphash.Bytes(s.rules.labelSeed, s.gather(at))
	case labels.to != 0:
		key ^= maphash.Bytes(s.rules.labelSeed, s.msg[labels.from:labels.to])
	}
	return key
}

// gather returns a metric's label fields put together, as if they had been sent so.
func (s *scan) gather(at span) []byte {
	b := s.msg[:at.to]
	s.labels = s.labels[:0]
	for i := int(at.from); i < len(b); {
		tag, next := readTag(b, i)
		end := skip(b, next, tag)
		if tag == metricLabel {
			s.labels = append(s.labels, b[i:end]...)
		}
		i = end
	}
	return s.labels
}

// checkNames checks a series' name and labels: their limits and, once for all samples of these bytes, that they are text.
// ok reports whether they are well-formed.
func (s *scan) checkNames(name, at span) (why refusal, ok bool) {
	why = kept
	refuse := func(r refusal) {
		if why == kept {
			why = r
		}
	}
	n := s.msg[name.from:name.to]
	if len(n) > s.rules.maxName {
		refuse(refusedName)
	}
	if !utf8.Valid(n) {
		refuse(refusedText)
	}
	labels := 0
	ok = eachLabel(s.msg[:at.to], int(at.from), func(name, value []byte) {
		labels++
		switch {
		case labels > s.rules.maxLabels:
			refuse(refusedLabels)
		case len(name) > s.rules.maxLabel || len(value) > s.rules.maxLabel:
			refuse(refusedLabel)
		case !utf8.Valid(name) || !utf8.Valid(value):
			refuse(refusedText)
		}
	})
	return why, ok
}

// eachLabel calls f for each label of the metric at b[from:], of which only the labels need to be well-formed; whether they
// are is the result.
func eachLabel(b []byte, from int, f func(name, value []byte)) bool {
	for i := from; i < len(b); {
		tag, next := readTag(b, i)
		if tag != metricLabel {
			i = skip(b, next, tag)
			continue
		}
		pair, end := readSpan(b, next)
		name, value, ok := readLabel(b[pair:end])
		if !ok {
			return false
		}
		f(name, value)
		i = end
	}
	return true
}

// readLabel reads a label pair.
func readLabel(b []byte) (name, value []byte, ok bool) {
	for i := 0; i < len(b); {
		tag, next := readTag(b, i)
		if next == malformed {
			return nil, nil, false
		}
		switch tag {
		case labelName:
			from, end := readSpan(b, next)
			if end == malformed {
				return nil, nil, false
			}
			name, i = b[from:end], end
		case labelValue:
			from, end := readSpan(b, next)
			if end == malformed {
				return nil, nil, false
			}
			value, i = b[from:end], end
		default:
			if i = skip(b, next, tag); i == malformed {
				return nil, nil, false
			}
		}
	}
	return name, value, true
}
