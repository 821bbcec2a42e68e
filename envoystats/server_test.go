package envoystats

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/protobuf/proto"

	"github.com/meshpulse/meshpulse/aggregator"
)

func TestAStreamIsHandedToItsPodsTableAndEndsWell(t *testing.T) {
	k := serveSink(t, Config{})
	s := k.open(t).send(hello(t, "web-0"), message(t, request(1000, 5)), message(t, request(2000, 7)))
	if st := s.close(); st.Code() != codes.OK {
		t.Fatal(st)
	}
	got := k.recorder.all()
	if len(got) != 2 || got[0].pod != "test/web-0" || got[0].row != 1000 || got[1].row != 2000 || !slices.Equal(got[1].values, []float64{7}) || got[1].series[0] != "istio_requests_total" {
		t.Errorf("commits %+v", got)
	}
	if k.recorder.closed != 1 {
		t.Errorf("%d pod streams closed, want 1", k.recorder.closed)
	}
	for _, m := range []struct {
		name, label string
		want        float64
	}{{"messages_total", "", 3}, {"samples_total", "counter", 2}, {"streams", "plaintext", 0}, {"stream_ends_total", "closed", 1}} {
		if got := k.metric(t, m.name, m.label); got != m.want {
			t.Errorf("%s{%s} %v, want %v", m.name, m.label, got, m.want)
		}
	}
}

func TestAnIdleSidecarIsARow(t *testing.T) {
	k := serveSink(t, Config{})
	k.open(t).send(hello(t, "web-0", family("cluster.x", dto.MetricType_COUNTER, counter(1000, 5))), message(t, family("server.uptime", dto.MetricType_GAUGE, counter(2000, 5)))).close()
	if got := k.recorder.all(); len(got) != 2 || got[0].row != 1000 || got[1].row != 2000 || len(got[0].series) != 0 {
		t.Errorf("commits %+v", got)
	}
	if got := k.metric(t, "skipped_families_total", ""); got != 2 {
		t.Errorf("%v families skipped, want 2", got)
	}
}

func TestAMalformedMessageIsRejectedWholeAndNothingElseIsLost(t *testing.T) {
	whole := message(t, request(3000, 1), request(3000, 2))
	for name, bad := range map[string][]byte{
		"garbage":   []byte("garbage that is no protobuf"),
		"truncated": whole[:len(whole)-3],
		"text":      bytes.Repeat([]byte{0xff}, 100),
	} {
		t.Run(name, func(t *testing.T) {
			k := serveSink(t, Config{})
			st := k.open(t).send(hello(t, "web-0"), message(t, request(1000, 5)), bad, bad, message(t, request(2000, 7))).close()
			if st.Code() != codes.OK {
				t.Fatal(st)
			}
			if got := k.recorder.all(); len(got) != 2 || got[1].row != 2000 {
				t.Errorf("commits %+v", got)
			}
			if got := k.metric(t, "rejected_messages_total", "malformed"); got != 2 {
				t.Errorf("%v messages counted, want 2", got)
			}
			if k.recorder.missed != 2 {
				t.Errorf("the store was told of %d messages that it misses, want 2", k.recorder.missed)
			}
			if n := strings.Count(k.log.String(), "message rejected, nothing of it was applied"); n != 1 || !strings.Contains(k.log.String(), "pod=web-0") {
				t.Errorf("told %d times, want once with the pod:\n%s", n, k.log)
			}
		})
	}
}

func TestAStreamThatDoesNotSayWhoReportsIsRefused(t *testing.T) {
	nameless, err := proto.Marshal(&metricsv3.StreamMetricsMessage{Identifier: &metricsv3.StreamMetricsMessage_Identifier{Node: &corev3.Node{Id: "envoy"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		send   [][]byte
		want   string
		reason string
		before int // commits
	}{
		{"no node", [][]byte{message(t, request(1000, 5))}, "carries no identifier.node", "node", 0},
		{"an empty message", [][]byte{{}}, "carries no identifier.node", "node", 0},
		{"a node that names no pod", [][]byte{nameless}, "set metadata NAME and NAMESPACE", "node", 0},
		{"a first message that cannot be read", [][]byte{{0xff}}, "malformed or truncated", "malformed", 0},
		{"another node on the same stream", [][]byte{hello(t, "web-0", request(1000, 5)), hello(t, "web-1", request(2000, 6))}, "open a stream for each node", "node", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := serveSink(t, Config{})
			st := k.open(t).send(test.send...).end()
			if st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), test.want) {
				t.Errorf("status %v, want one with %q", st, test.want)
			}
			if got := k.recorder.all(); len(got) != test.before {
				t.Errorf("commits %+v, want %d", got, test.before)
			}
			if got := k.metric(t, "stream_ends_total", test.reason); got != 1 {
				t.Errorf("%v ends counted, want 1", got)
			}
			if !strings.Contains(k.log.String(), "stream refused") {
				t.Errorf("log:\n%s", k.log)
			}
		})
	}
}

func TestTheSameNodeMayBeSaidAgain(t *testing.T) {
	k := serveSink(t, Config{})
	if st := k.open(t).send(hello(t, "web-0", request(1000, 5)), hello(t, "web-0", request(2000, 6))).close(); st.Code() != codes.OK {
		t.Fatal(st)
	}
	if len(k.recorder.all()) != 2 || len(k.recorder.pods) != 1 {
		t.Errorf("%d commits of %d pods", len(k.recorder.all()), len(k.recorder.pods))
	}
}

// quantiles are a summary's as Envoy sends them, with these values.
func quantiles(values ...float64) []float64 {
	var all []float64
	for i, q := range aggregator.SummaryQuantiles {
		v := math.NaN()
		if i < len(values) {
			v = values[i]
		}
		all = append(all, q, v)
	}
	return all
}

func TestABadSampleIsCountedAndNothingElseOfItsMessageIsLost(t *testing.T) {
	const c, h, s = dto.MetricType_COUNTER, dto.MetricType_HISTOGRAM, dto.MetricType_SUMMARY
	nan, inf := math.NaN(), math.Inf(1)
	for _, test := range []struct {
		name, reason string
		bad          *dto.MetricFamily
	}{
		{"a family without metrics", "no_metric", family("istio_bad", c)},
		{"a metric without a value", "no_value", family("istio_bad", c, &dto.Metric{TimestampMs: proto.Int64(1000)})},
		{"a metric with a value of another type", "no_value", family("istio_bad", h, counter(1000, 1))},
		{"a counter that is NaN", "counter_value", family("istio_bad", c, counter(1000, nan))},
		{"a counter that is infinite", "counter_value", family("istio_bad", c, counter(1000, inf))},
		{"a counter that is negative", "counter_value", family("istio_bad", c, counter(1000, -1))},
		{"a sum that is NaN", "sum", family("istio_bad", h, histogram(1000, nan, 1))},
		{"a sum that is infinite", "sum", family("istio_bad", s, summary(1000, inf, 1, quantiles(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)...))},
		{"a sum that is negative", "sum", family("istio_bad", h, histogram(1000, -1, 1))},
		{"bucket counts that shrink", "bucket_counts", family("istio_bad", h, histogram(1000, 1, 5, 1, 3, 2, 2))},
		{"buckets that hold more than the histogram", "bucket_counts", family("istio_bad", h, histogram(1000, 1, 5, 1, 3, 2, 6))},
		{"a histogram of 2^31 observations in an interval", "interval_count", family("istio_bad", h, histogram(1000, 1, 1<<31, 1, 1))},
		{"a summary of 2^31 observations in an interval", "interval_count", family("istio_bad", s, summary(1000, 1, 1<<31, quantiles(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)...))},
		{"bounds that descend", "bucket_bounds", family("istio_bad", h, histogram(1000, 1, 5, 2, 1, 1, 2))},
		{"a bound that is NaN", "bucket_bounds", family("istio_bad", h, histogram(1000, 1, 5, nan, 1))},
		{"too many buckets", "too_many_buckets", family("istio_bad", h, histogram(1000, 1, 5, 1, 1, 2, 1, 3, 1, 4, 1))},
		{"other quantiles than Envoy's", "quantiles", family("istio_bad", s, summary(1000, 1, 5, .5, 1))},
		{"a quantile that is NaN in spite of samples", "quantiles", family("istio_bad", s, summary(1000, 1, 5, quantiles(1)...))},
		{"quantiles that descend", "quantiles", family("istio_bad", s, summary(1000, 1, 5, quantiles(2, 1, 1, 1, 1, 1, 1, 1, 1, 1)...))},
		{"no timestamp", "timestamp", family("istio_bad", c, &dto.Metric{Counter: &dto.Counter{Value: proto.Float64(1)}})},
		{"a negative timestamp", "timestamp", family("istio_bad", c, counter(-1000, 1))},
		{"a timestamp beyond all time", "timestamp", family("istio_bad", c, counter(math.MaxInt64, 1))},
		{"a name that is too long", "name_too_long", family("istio_"+strings.Repeat("x", 200), c, counter(1000, 1))},
		{"a label that is too long", "label_too_long", family("istio_bad", c, counter(1000, 1, "a", strings.Repeat("x", 51)))},
		{"too many labels", "too_many_labels", family("istio_bad", c, counter(1000, 1, "a", "1", "b", "1", "c", "1"))},
		{"a name that is not text", "not_utf8", family("istio_\xff", c, counter(1000, 1))},
		{"a label that is not text", "not_utf8", family("istio_bad", c, counter(1000, 1, "a", "\xc3\x28"))},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := serveSink(t, Config{MaxNameBytes: 100, MaxLabelBytes: 50, MaxLabels: 2, MaxBuckets: 3})
			b := message(t, request(1000, 5), test.bad, family("istio_good", h, histogram(1000, 1, 2, 1, 1)))
			if st := k.open(t).send(hello(t, "web-0"), b).close(); st.Code() != codes.OK {
				t.Fatal(st)
			}
			got := k.recorder.all()
			if len(got) != 1 || got[0].refused != 1 || !slices.Equal(got[0].series, []string{"istio_requests_total", "istio_good"}) || !slices.Equal(got[0].values, []float64{5, 1}) {
				t.Errorf("commits %+v", got)
			}
			if log := k.log.String(); strings.Count(log, "1 "+test.reason) != 1 || !strings.Contains(log, "pod=web-0") {
				t.Errorf("the log does not tell the reason of the pod once:\n%s", log)
			}
			if got := k.metric(t, "dropped_samples_total", test.reason); got != 1 {
				t.Errorf("%v dropped for %s, want 1", got, test.reason)
			}
		})
	}
}

func TestAnyTimestampThatIsOneIsTheStoresToJudge(t *testing.T) {
	k := serveSink(t, Config{})
	want := []int64{1, 4102444800000, 4102444800000, 4102441200000, 1000}
	s := k.open(t).send(hello(t, "web-0"))
	for _, timestamp := range want {
		s.send(message(t, request(timestamp, 1)))
	}
	s.close()
	var got []int64
	for _, c := range k.recorder.all() {
		got = append(got, c.row)
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows %v, want %v", got, want)
	}
}

// A message of some KB may inflate to the largest that is taken, on each of many connections at
// once.
func TestCompressedMessagesAreRefusedBeforeTheyAreInflated(t *testing.T) {
	k := serveSink(t, Config{})
	s := k.open(t, grpc.UseCompressor(gzip.Name))
	inflates := make([]byte, 1<<20)
	if st := s.send(inflates).end(); st.Code() != codes.Unimplemented || !strings.Contains(st.Message(), `grpc-encoding "gzip"`) {
		t.Errorf("status %v", st)
	}
	if got := k.metric(t, "stream_ends_total", "compressed"); got != 1 {
		t.Errorf("%v counted, want 1", got)
	}
	if got := k.metric(t, "messages_total", ""); got != 0 {
		t.Errorf("%v messages were read", got)
	}
	if !strings.Contains(k.log.String(), "grpc_encoding=gzip") {
		t.Errorf("log:\n%s", k.log)
	}
	if st := k.open(t, grpc.UseCompressor(encoding.Identity)).send(hello(t, "web-0", request(1000, 1))).close(); st.Code() != codes.OK {
		t.Errorf("as they are: %v", st)
	}
}

func TestAMessageOverTheLimitIsToldWithTheRemedy(t *testing.T) {
	k := serveSink(t, Config{MaxMessageBytes: 1000})
	st := k.open(t).send(hello(t, "web-0", request(1000, 5)), make([]byte, 1001)).end()
	if st.Code() != codes.ResourceExhausted {
		t.Errorf("status %v", st)
	}
	if len(k.recorder.all()) != 1 {
		t.Errorf("commits %+v, want the first message's", k.recorder.all())
	}
	waitFor(t, "the log line", func() bool { return strings.Contains(k.log.String(), "too_large") }) // the sender is told first
	if got := k.metric(t, "rejected_messages_total", "too_large"); got != 1 {
		t.Errorf("%v counted, want 1", got)
	}
	for _, part := range []string{"--max-message-bytes", "pod=web-0", "1001 vs. 1000"} {
		if !strings.Contains(k.log.String(), part) {
			t.Errorf("log without %q:\n%s", part, k.log)
		}
	}
}

// Two streams of one pod: the newer counts while both send. When it ends, the older one counts
// again, and none was ended for that.
func TestAnOlderConnectionOfAPodCountsAgainWhenTheNewerEnds(t *testing.T) {
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	k := serveWith(t, Config{}, nil, func(p aggregator.Pod) podStream { return store.Connect(p) })
	now := time.Now().UnixMilli()
	largest := func() float64 {
		t.Helper()
		q, err := store.Query("sum(max_over_time(istio_requests_total[5m]))")
		if err != nil {
			t.Fatal(err)
		}
		a, err := q.Eval(t.Context(), time.Now())
		switch {
		case err != nil:
			t.Fatal(err)
		case len(a.Values) == 0:
			return 0
		}
		return a.Values[0].V
	}
	older := k.open(t).send(hello(t, "web-0", request(now-6000, 5)))
	waitFor(t, "the older stream's message", func() bool { return largest() == 5 })
	newer := k.open(t).send(hello(t, "web-0", request(now-5000, 7)))
	waitFor(t, "the newer stream's message", func() bool { return largest() == 7 })
	older.send(message(t, request(now-4000, 1000)), message(t, request(now-3000, 1000)))
	waitFor(t, "two messages to be dropped", func() bool { return k.metric(t, "rejected_messages_total", "superseded") == 2 })
	if got := largest(); got != 7 {
		t.Errorf("%v counted, want the newer stream's 7", got)
	}
	if n := strings.Count(k.log.String(), "reason=superseded"); n != 1 {
		t.Errorf("told %d times, want once:\n%s", n, k.log)
	}
	if p := store.Pod("test", "web-0", time.Now(), time.Minute); p.Rivals == nil || !p.Rivals.Sure || p.Rivals.Counts == p.Rivals.Other || !strings.HasPrefix(p.Rivals.Other, "127.0.0.1:") {
		t.Errorf("rivals %+v, want both peers' addresses", p.Rivals)
	}
	if st := newer.close(); st.Code() != codes.OK {
		t.Fatal(st)
	}
	if st := older.send(message(t, request(now-2000, 1010))).close(); st.Code() != codes.OK {
		t.Errorf("the older stream was ended: %v", st)
	}
	if got := largest(); got != 1010 {
		t.Errorf("%v counted, want the older stream's 1010 once the newer one has ended", got)
	}
}

// waitFor waits for what another goroutine does. The bound only ends a test that has failed.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestStreamsBeyondTheLimitAreRefused(t *testing.T) {
	k := serveSink(t, Config{MaxStreams: 1})
	first := k.open(t).send(hello(t, "web-0", request(1000, 1)))
	waitFor(t, "the first stream", func() bool { return k.metric(t, "streams", "plaintext") == 1 })
	if st := k.open(t).send(hello(t, "web-1", request(1000, 1))).end(); st.Code() != codes.ResourceExhausted || !strings.Contains(st.Message(), "too many streams") {
		t.Errorf("status %v", st)
	}
	if st := first.close(); st.Code() != codes.OK {
		t.Errorf("the first stream: %v", st)
	}
	waitFor(t, "the first stream's end", func() bool { return k.metric(t, "streams", "plaintext") == 0 })
	if st := k.open(t).send(hello(t, "web-1", request(1000, 1))).close(); st.Code() != codes.OK {
		t.Errorf("a stream after the first has ended: %v", st)
	}
	if got := k.metric(t, "stream_ends_total", "limit"); got != 1 {
		t.Errorf("%v counted, want 1", got)
	}
}

func TestShutdownEndsStreamsAfterTheMessageTheyAreIn(t *testing.T) {
	k := serveSink(t, Config{})
	talking, silent := k.open(t).send(hello(t, "web-0", request(1000, 1))), k.open(t).send(hello(t, "web-1", request(1000, 1)))
	waitFor(t, "both streams", func() bool { return len(k.recorder.all()) == 2 })
	down := make(chan error, 1)
	go func() { down <- k.Shutdown(t.Context()) }()
	waitFor(t, "draining", k.draining.Load)
	if st := talking.send(message(t, request(2000, 2))).end(); st.Code() != codes.Unavailable {
		t.Errorf("the stream that sends: %v", st)
	}
	if st := silent.end(); st.Code() != codes.Unavailable {
		t.Errorf("the stream that is silent: %v", st)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
	if got := k.recorder.all(); len(got) != 3 || got[2].values[0] != 2 {
		t.Errorf("commits %+v, want the message that was on its way, too", got)
	}
	if got := k.metric(t, "stream_ends_total", "draining"); got != 2 || k.recorder.closed != 2 {
		t.Errorf("%v ends counted and %d pod streams closed, want 2", got, k.recorder.closed)
	}
}

// A message that takes long is left where it is once nobody waits any more.
func TestShutdownEndsInTheMiddleOfALargeMessage(t *testing.T) {
	server, err := newServer(Config{}, (&recorder{}).connect)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := server.Shutdown(ctx); err != nil && !errors.Is(err, context.Canceled) { // it may have ended as soon
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"many families":              message(t, request(1000, 1), request(1000, 2)),
		"one family, many metrics":   message(t, family("istio_x", dto.MetricType_COUNTER, counter(1000, 1), counter(1000, 2))),
		"families that are not read": message(t, family("x", dto.MetricType_COUNTER, counter(1000, 1))),
	} {
		st, s := &stream{server: server}, server.scans.get()
		s.buf = append(s.buf[:0], b...)
		if reason, err := st.message(time.UnixMilli(1), s); reason != endDraining || err == nil || st.out != nil {
			t.Errorf("%s: ended as %q with error %v", name, reason, err)
		}
	}
}

func TestShutdownIsBoundByItsContext(t *testing.T) {
	k := serveSink(t, Config{})
	k.open(t).send(hello(t, "web-0", request(1000, 1)))
	waitFor(t, "the stream", func() bool { return len(k.recorder.all()) == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := k.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if k.recorder.closed != 1 {
		t.Error("the stream is still open")
	}
}

func TestStreamsAreConcurrentSafe(t *testing.T) {
	const streams, flushes = 20, 50
	k := serveSink(t, Config{})
	done := make(chan error, streams)
	for i := range streams {
		s := k.open(t)
		go func() {
			s.send(hello(t, fmt.Sprintf("web-%d", i)))
			for n := range flushes {
				s.send(message(t, request(int64(n+1), float64(i*flushes+n)), family("cluster.x", dto.MetricType_COUNTER, counter(1, 1))))
			}
			done <- s.close().Err()
		}()
	}
	for range streams {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	sums := map[string]float64{}
	for _, c := range k.recorder.all() {
		sums[c.pod] += c.values[0]
	}
	for i := range streams {
		want := float64(flushes*i*flushes + flushes*(flushes-1)/2)
		if got := sums[fmt.Sprintf("test/web-%d", i)]; got != want {
			t.Errorf("stream %d: values add up to %v, want %v", i, got, want)
		}
	}
	for name, want := range map[string]float64{"messages_total": streams * (flushes + 1), "skipped_families_total": streams * flushes} {
		if got := k.metric(t, name, ""); got != want {
			t.Errorf("%s %v, want %v", name, got, want)
		}
	}
}

func TestConfigNamesWhatCannotBeUsed(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]Config{
		"MaxMessageBytes":  {MaxMessageBytes: -1},
		"MaxStreams":       {MaxStreams: -1},
		"MaxNameBytes":     {MaxNameBytes: 1 << 30},
		"MaxLabelBytes":    {MaxLabelBytes: -1},
		"MaxLabels":        {MaxLabels: 5000},
		"MaxBuckets":       {MaxBuckets: -5},
		`custom tag "a.b"`: {CustomTags: []string{"a.b"}},
		`custom tag ""`:    {CustomTags: []string{""}},
	} {
		if _, err := NewServer(c, nil); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

func TestKeeps(t *testing.T) {
	for _, tc := range []struct {
		keep   []string
		metric string
		want   bool
	}{
		{nil, "istio_requests_total", true},
		{nil, "envoy_cluster_upstream_rq", false},
		{[]string{"envoy_cluster_upstream_rq_active"}, "envoy_cluster_upstream_rq_active", true},
		{[]string{"envoy_cluster_upstream_rq_active"}, "envoy_cluster_upstream_rq_total", false},
		{[]string{"cluster.outbound|80"}, "envoy_cluster_upstream_rq_active", true}, // which clusters, the label tells
		{[]string{"istio_request_duration"}, "istio_request_duration_milliseconds", true},
		{[]string{"istio_request_duration"}, "istio_requests_total", true}, // where an HPA names it
		{nil, "istio_request_bytes", true},
		{[]string{"istio_requests"}, "istio_request_duration_milliseconds", true}, // a counter's past is taken from it
		{[]string{"istiocustom.istio_requests_total"}, "istio_requests_total", true},
	} {
		if got := (Config{Keep: tc.keep}).Keeps(tc.metric); got != tc.want {
			t.Errorf("keep %q, %s: %v", tc.keep, tc.metric, got)
		}
	}
	if err := (Config{Keep: []string{}}).Validate(); !errors.Is(err, ErrConfig) {
		t.Errorf("nothing is kept: %v", err)
	}
}
