package link

import (
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Fields on the way to a timestamp: StreamMetricsMessage.envoy_metrics, MetricFamily.metric,
// Metric.timestamp_ms (envoy/service/metrics/v3/metrics_service.proto,
// io/prometheus/client/metrics.proto).
var timestampPath = []protowire.Number{2, 4, 6}

// ShiftClock is a change to messages: their sidecar's clock is off by so much.
func ShiftClock(by time.Duration) func(message []byte) {
	return func(message []byte) { shift(message, timestampPath, by.Milliseconds()) }
}

// shift walks along the path; what cannot be read is left as it is.
func shift(b []byte, path []protowire.Number, by int64) {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(number, kind, b)
		if size < 0 {
			return
		}
		switch {
		case number != path[0]:
		case len(path) > 1 && kind == protowire.BytesType:
			inner, _ := protowire.ConsumeBytes(b)
			shift(inner, path[1:], by)
		case len(path) == 1 && kind == protowire.VarintType:
			value, _ := protowire.ConsumeVarint(b)
			putVarint(b[:size], uint64(int64(value)+by))
		}
		b = b[size:]
	}
}

// putVarint writes a value in exactly the space that another had. Milliseconds since 1970 take six
// bytes until the year 2109.
func putVarint(b []byte, value uint64) {
	if protowire.SizeVarint(value) > len(b) {
		return
	}
	for i := range b {
		b[i] = byte(value&0x7f) | 0x80
		value >>= 7
	}
	b[len(b)-1] &^= 0x80
}

// Garble is a change to messages: half of them arrive with some of their bytes wrong. The same seed
// garbles the same.
func Garble(seed uint64) func(message []byte) {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 0))
	return func(message []byte) {
		mu.Lock()
		defer mu.Unlock()
		if len(message) == 0 || random.IntN(2) == 0 {
			return
		}
		at := random.IntN(len(message))
		switch random.IntN(4) {
		case 0: // a bit
			message[at] ^= 1 << random.IntN(8)
		case 1: // a run of noise
			end := min(at+1+random.IntN(64), len(message))
			for i := at; i < end; i++ {
				message[i] = byte(random.Uint32())
			}
		case 2: // the rest is missing
			clear(message[at:])
		case 3: // a part comes twice
			copy(message[at:], message[random.IntN(at+1):])
		}
	}
}
