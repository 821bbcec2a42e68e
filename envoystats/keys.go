package envoystats

import (
	"hash/maphash"
	"unicode/utf8"

	"github.com/meshpulse/meshpulse/aggregator"
)

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
	switch kind {
	case aggregator.Counter:
		seed = s.rules.counterSeed
	case aggregator.Gauge:
		seed = s.rules.gaugeSeed
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

// checkNames checks a series' name and labels: their limits and, once for all samples of these
// bytes, that they are text. ok reports whether they are well-formed.
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

// eachLabel calls f for each label of the metric at b[from:], of which only the labels need to be
// well-formed; whether they are is the result.
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
	i := 0
	for inside(b, i) {
		tag, next := readTag(b, i)
		switch tag {
		case labelName:
			name, i = readBytes(b, next)
		case labelValue:
			value, i = readBytes(b, next)
		default:
			i = skip(b, next, tag)
		}
	}
	return name, value, i != malformed
}
