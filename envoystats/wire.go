package envoystats

import (
	"encoding/binary"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meshpulse/meshpulse/aggregator"
)

// The readers below follow what the generated decoder accepts
// (google.golang.org/protobuf/internal/impl/decode.go), so that the two agree on every message;
// FuzzScan holds that. Each takes the bytes of a message up to its end and the index to read at,
// and returns the index behind what it read, or malformed.

const malformed = -1

// inside reports whether there is more of the message to read at an index. There is nothing at
// malformed.
func inside(b []byte, i int) bool { return uint(i) < uint(len(b)) }

// Wire types.
const (
	varint    = uint32(protowire.VarintType)
	fixed64   = uint32(protowire.Fixed64Type)
	delimited = uint32(protowire.BytesType)
)

// Tags: field number << 3 | wire type.
const (
	messageIdentifier = 1<<3 | delimited // envoy.service.metrics.v3.StreamMetricsMessage
	messageFamily     = 2<<3 | delimited

	familyName   = 1<<3 | delimited // io.prometheus.client.MetricFamily
	familyType   = 3<<3 | varint
	familyMetric = 4<<3 | delimited

	metricLabel     = 1<<3 | delimited // io.prometheus.client.Metric
	metricGauge     = 2<<3 | delimited
	metricCounter   = 3<<3 | delimited
	metricSummary   = 4<<3 | delimited
	metricTimestamp = 6<<3 | varint
	metricHistogram = 7<<3 | delimited

	labelName  = 1<<3 | delimited // io.prometheus.client.LabelPair
	labelValue = 2<<3 | delimited

	counterValue = 1<<3 | fixed64 // io.prometheus.client.Counter and Gauge

	sampleCount = 1<<3 | varint // io.prometheus.client.Histogram and Summary
	sampleSum   = 2<<3 | fixed64
	sampleView  = 3<<3 | delimited // a bucket of the one, a quantile of the other

	bucketCount = 1<<3 | varint // io.prometheus.client.Bucket
	bucketBound = 2<<3 | fixed64

	quantileQ     = 1<<3 | fixed64 // io.prometheus.client.Quantile
	quantileValue = 2<<3 | fixed64
)

// readTag returns a field's tag, 0 if it is malformed. There has to be a byte at i.
func readTag(b []byte, i int) (tag uint32, next int) {
	if c := b[i]; c-8 < 0x80-8 { // one byte, field number not 0
		return uint32(c), i + 1
	}
	return readLongTag(b, i)
}

func readLongTag(b []byte, i int) (tag uint32, next int) {
	v, n := protowire.ConsumeVarint(b[i:])
	if n < 0 || v>>3 < uint64(protowire.MinValidNumber) || v>>3 > uint64(protowire.MaxValidNumber) {
		return 0, malformed
	}
	return uint32(v), i + n
}

// readVarint returns a varint.
func readVarint(b []byte, i int) (v uint64, next int) {
	if i < len(b) && b[i] < 0x80 {
		return uint64(b[i]), i + 1
	}
	v, n := protowire.ConsumeVarint(b[i:])
	if n < 0 {
		return 0, malformed
	}
	return v, i + n
}

// readDouble returns a double.
func readDouble(b []byte, i int) (v float64, next int) {
	if len(b)-i < 8 {
		return 0, malformed
	}
	return math.Float64frombits(binary.LittleEndian.Uint64(b[i:])), i + 8
}

// readSpan returns where a string, bytes or message field lies: b[from:next].
func readSpan(b []byte, i int) (from, next int) {
	v, from := readVarint(b, i)
	if from == malformed || v > uint64(len(b)-from) {
		return 0, malformed
	}
	return from, from + int(v)
}

// readBytes returns a string, bytes or message field.
func readBytes(b []byte, i int) (field []byte, next int) {
	from, next := readSpan(b, i)
	if next == malformed {
		return nil, malformed
	}
	return b[from:next], next
}

// skip passes over a field's value. Where the tag could not be read it is malformed, too.
func skip(b []byte, i int, tag uint32) (next int) {
	if i == malformed {
		return malformed
	}
	if tag&7 == delimited {
		_, next = readSpan(b, i)
		return next
	}
	n := protowire.ConsumeFieldValue(protowire.Number(tag>>3), protowire.Type(tag&7), b[i:])
	if n < 0 {
		return malformed
	}
	return i + n
}

// Of a flush of 20 label sets more than a thousand buckets and two hundred quantiles are read, all
// but a few encoded alike: each field once, in the order of its number. The readers below take
// those, whose length is at b[i]; what they do not take is for the readers of any encoding.

// shortBucket reads a bucket of a count below 128 and a bound. It is small enough to be inlined.
func shortBucket(b []byte, i int) (k aggregator.Bucket, next int, ok bool) {
	const length = 1 + 1 + 9
	if len(b)-i <= length {
		return k, 0, false
	}
	f := (*[1 + length]byte)(b[i:])
	if f[0] != length || f[1] != byte(bucketCount) || f[2] >= 0x80 || f[3] != byte(bucketBound) {
		return k, 0, false
	}
	return aggregator.Bucket{UpperBound: math.Float64frombits(binary.LittleEndian.Uint64(f[4:])), Count: uint64(f[2])}, i + 1 + length, true
}

// plainBucket reads a bucket of a count and a bound.
func plainBucket(b []byte, i int) (k aggregator.Bucket, next int, ok bool) {
	const shortest, longest = 1 + 1 + 9, 1 + binary.MaxVarintLen64 + 9
	if i >= len(b) || b[i] < shortest || b[i] > longest || len(b)-i <= int(b[i]) {
		return k, 0, false
	}
	field := b[i+1 : i+1+int(b[i])]
	bound := field[len(field)-9:]
	if field[0] != byte(bucketCount) || bound[0] != byte(bucketBound) {
		return k, 0, false
	}
	k.Count = uint64(field[1])
	if varint := field[1 : len(field)-9]; len(varint) > 1 || field[1] >= 0x80 {
		n := 0
		if k.Count, n = protowire.ConsumeVarint(varint); n != len(varint) {
			return k, 0, false
		}
	}
	k.UpperBound = math.Float64frombits(binary.LittleEndian.Uint64(bound[1:]))
	return k, i + 1 + len(field), true
}

// plainQuantile reads a quantile and its value.
func plainQuantile(b []byte, i int) (q, value float64, next int, ok bool) {
	const length = 9 + 9
	if len(b)-i <= length || b[i] != length || b[i+1] != byte(quantileQ) || b[i+10] != byte(quantileValue) {
		return 0, 0, 0, false
	}
	q = math.Float64frombits(binary.LittleEndian.Uint64(b[i+2:]))
	value = math.Float64frombits(binary.LittleEndian.Uint64(b[i+11:]))
	return q, value, i + 1 + length, true
}
