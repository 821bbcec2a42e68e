package aggregator

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// numbered describes series as istio_requests_total with their keys as a label, but where a key has
// a name of its own.
type numbered struct {
	batch *Batch
	same  bool // all keys are one series
}

func (n numbered) Describe(i int) (string, []Label, error) {
	code := fmt.Sprint(n.batch.Samples[i].Key)
	if n.same {
		code = "one"
	}
	return "istio_requests_total", []Label{{"code", code}}, nil
}

func counters(timestamp time.Time, from, to uint64) *Batch {
	b := &Batch{Timestamp: timestamp.UnixMilli()}
	for key := from; key < to; key++ {
		b.Samples = append(b.Samples, Sample{Key: key, Timestamp: b.Timestamp, Kind: Counter, Value: 7})
	}
	return b
}

// Each limit has an error of its own, which the stream hears and the store counts; what came before
// it is taken.
func TestEachLimitIsToldAndCounted(t *testing.T) {
	for name, test := range map[string]struct {
		config Config
		heap   uint64
		want   error
		kept   int
	}{
		"series of a pod": {Config{MaxSeriesPerPod: 3}, 0, ErrPodLimit, 3},
		"series in all":   {Config{MaxSeries: 4}, 0, ErrSeriesLimit, 4},
		"memory":          {Config{MemoryBudget: 1 << 20}, 1<<20 + 1, ErrMemory, 0},
		"none":            {Config{MemoryBudget: 1 << 20}, 100 << 10, nil, 10},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New(test.config)
			if err != nil {
				t.Fatal(err)
			}
			s.liveHeap = func() uint64 { return test.heap }
			s.watchMemory()
			st := s.Connect(Pod{Namespace: "test", Name: "flood"})
			defer st.Close()
			now := time.Now()
			b := counters(now, 1, 11)
			if err := st.Commit(now, b, numbered{batch: b}); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if got := s.series.Taken(); got != int64(test.kept) {
				t.Errorf("%d series are kept, want %d", got, test.kept)
			}
			for reason, c := range s.metrics.dropped {
				want := 0.0
				if reason == test.want {
					want = float64(10 - test.kept)
				}
				if got := testutil.ToFloat64(c); got != want {
					t.Errorf("%v counted for %q, want %v", got, dropReasons[reason], want)
				}
			}
		})
	}
}

// One series may come under as many keys as its labels have orders. Each key is remembered, so keys
// are bounded, too.
func TestKeysOfOneSeriesAreBounded(t *testing.T) {
	s, err := New(Config{MaxSeriesPerPod: 5})
	if err != nil {
		t.Fatal(err)
	}
	st := s.Connect(Pod{Namespace: "test", Name: "flood"})
	defer st.Close()
	now := time.Now()
	b := counters(now, 1, 1000)
	if err := st.Commit(now, b, numbered{batch: b, same: true}); !errors.Is(err, ErrPodLimit) {
		t.Errorf("error %v", err)
	}
	if n := len(st.table.keys); n != 20 || s.series.Taken() != 1 {
		t.Errorf("%d keys of %d series, want 20 of 1", n, s.series.Taken())
	}
}

// A flood of new label sets, every flush others, leaves no more behind than the limits allow, and
// takes nothing from other pods.
func TestAFloodOfNewLabelSetsIsForgotten(t *testing.T) {
	s, err := New(Config{MaxSeriesPerPod: 50, Retention: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	flood, calm := s.Connect(Pod{Namespace: "test", Name: "flood"}), s.Connect(Pod{Namespace: "test", Name: "calm"})
	defer flood.Close()
	defer calm.Close()
	now := time.Now()
	for flush := range uint64(200) {
		at := now.Add(time.Duration(flush) * 5 * time.Second)
		b := counters(at, 1000+flush*100, 1100+flush*100)
		if err := flood.Commit(at, b, numbered{batch: b}); err != nil && !errors.Is(err, ErrPodLimit) {
			t.Fatal(err)
		}
		b = &Batch{Timestamp: at.UnixMilli(), Samples: []Sample{{Key: 1, Timestamp: at.UnixMilli(), Kind: Counter, Value: float64(flush)}}}
		if err := calm.Commit(at, b, numbered{batch: b}); err != nil {
			t.Fatal(err)
		}
	}
	table := flood.table
	table.mu.Lock()
	if len(table.columns) > 50 || len(table.keys) > 200 || len(table.past.values) > 200 || len(table.byClass) > 50 {
		t.Errorf("%d columns, %d keys, %d tombstones, %d classes", len(table.columns), len(table.keys), len(table.past.values), len(table.byClass))
	}
	table.mu.Unlock()
	s.classes.mu.Lock()
	if n := len(s.classes.byHash); n > 51 {
		t.Errorf("%d classes, want those of 51 series at most", n)
	}
	s.classes.mu.Unlock()
	q, err := s.Query(`increase(istio_requests_total{pod="calm"}[50s])`)
	if err != nil {
		t.Fatal(err)
	}
	a, err := q.Eval(t.Context(), now.Add(995*time.Second))
	if err != nil || len(a.Values) != 1 || a.Values[0].V != 10 {
		t.Errorf("the calm pod's answer is %v, error %v, want 10", a.Values, err)
	}
}

// A pod at its limit whose sidecar comes back with other keys (tags as labels and no longer in
// names) has the same series.
func TestAtItsLimitAPodsSeriesAreKnownUnderOtherKeys(t *testing.T) {
	const series = 10
	for _, space := range []uint64{0, 1 << 40} {
		s, err := New(Config{MaxSeriesPerPod: series})
		if err != nil {
			t.Fatal(err)
		}
		p := Pod{Namespace: "test", Name: "pod"}
		flush := func(st *Stream, number int, offset uint64) error {
			at := s.started.Add(time.Duration(number) * 5 * time.Second)
			b := counters(at, 1+offset, 1+offset+2*series)
			b.Space = space
			return st.Commit(at, b, moved{b, offset})
		}
		st := s.Connect(p)
		for number := range 3 {
			if err := flush(st, number, 0); !errors.Is(err, ErrPodLimit) {
				t.Fatalf("flush %d: error %v", number, err)
			}
		}
		st.Close()
		st = s.Connect(p)
		for number := 3; number < 6; number++ {
			before := testutil.ToFloat64(s.metrics.dropped[ErrPodLimit])
			if err := flush(st, number, 1000); !errors.Is(err, ErrPodLimit) {
				t.Fatalf("flush %d: error %v", number, err)
			}
			if got := testutil.ToFloat64(s.metrics.dropped[ErrPodLimit]) - before; got != series {
				t.Errorf("space %d, flush %d: %v samples are refused, want those of the %d series that are too many", space, number, got, series)
			}
		}
		if n := len(st.table.strange); n > 4*series {
			t.Errorf("%d refused keys are remembered", n)
		}
	}
}

// moved describes series by their keys less an offset.
type moved struct {
	batch  *Batch
	offset uint64
}

func (m moved) Describe(i int) (string, []Label, error) {
	return "istio_requests_total", []Label{{"code", fmt.Sprint(m.batch.Samples[i].Key - m.offset)}}, nil
}

// A message is one row. One that claims many would have each of them repeat every series of the
// pod.
func TestAMessageIsOneRow(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	st := s.Connect(Pod{Namespace: "test", Name: "pod"})
	now := s.started
	b := counters(now, 1, 101)
	if err := st.Commit(now, b, numbered{batch: b}); err != nil {
		t.Fatal(err)
	}
	row, slots := st.table.ring.Newest(), st.table.ring.Slots()
	now = now.Add(5 * time.Second)
	b = counters(now, 1, 2)
	for i := range int64(1300) {
		b.Samples = append(b.Samples, Sample{Key: 2, Timestamp: b.Timestamp + 1 + i, Kind: Counter, Value: float64(i)})
	}
	b.Samples = append(b.Samples, Sample{Key: 3, Timestamp: b.Timestamp, Kind: Counter, Value: 9})
	if err := st.Commit(now, b, numbered{batch: b}); !errors.Is(err, ErrOtherFlush) {
		t.Errorf("error %v", err)
	}
	if got := st.table.ring.Newest() - row; got != 1 || st.table.ring.Slots() != slots {
		t.Errorf("%d rows more, %d slots for %d", got, st.table.ring.Slots(), slots)
	}
	if got := testutil.ToFloat64(s.metrics.dropped[ErrOtherFlush]); got != 1300 {
		t.Errorf("%v samples are counted, want 1300", got)
	}
	if p := s.Pod("test", "pod", now, time.Minute); p.Refused.IsZero() {
		t.Error("the pod does not say that samples of it were refused")
	}
	q, err := s.Query(`istio_requests_total{code="3"}`)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := q.Eval(t.Context(), now); err != nil || len(a.Values) != 1 || a.Values[0].V != 9 {
		t.Errorf("a sample of the message's own time after the others: %v, %v", a.Values, err)
	}
}

// A counter that comes without a histogram begins at 0 where it is new. Once a refused sample is
// out of the retention, it is again.
func TestAfterARefusedSampleIsForgottenNewCountersBeginAtZero(t *testing.T) {
	s, err := New(Config{Retention: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	st := s.Connect(Pod{Namespace: "test", Name: "pod"})
	now := s.started
	counted := func(key uint64) float64 {
		q, err := s.Query(fmt.Sprintf(`increase(istio_tcp_connections_opened_total{code="%d"}[20s])`, key))
		if err != nil {
			t.Fatal(err)
		}
		a, err := q.Eval(t.Context(), now)
		if err != nil || len(a.Values) != 1 {
			t.Fatalf("series %d: %v, %v", key, a.Values, err)
		}
		return a.Values[0].V
	}
	for flush := range 30 {
		now = now.Add(5 * time.Second)
		b := counters(now, 1, 2)
		switch flush {
		case 5:
			b.Refused = 1
		case 8, 25:
			b = counters(now, 1, uint64(flush))
		}
		if err := st.Commit(now, b, tcp{b}); err != nil {
			t.Fatal(err)
		}
		if flush == 9 && counted(7) != 0 {
			t.Error("what was counted before a series came is not known shortly after one was refused, and is counted")
		}
		if flush == 26 && counted(24) == 0 {
			t.Error("what a new counter begins with is not counted, a retention after a sample was refused")
		}
	}
}

type tcp struct{ batch *Batch }

func (d tcp) Describe(i int) (string, []Label, error) {
	return "istio_tcp_connections_opened_total", []Label{{"code", fmt.Sprint(d.batch.Samples[i].Key)}}, nil
}

// Counts whose totals are replaced at every flush cost each of a pod's histograms the same,
// however many there are.
func TestLargeCountsCostNoMoreWithManyHistograms(t *testing.T) {
	if !inAProcessOfItsOwn(t) {
		return
	}
	flushed := func(series int) (bytes uint64) {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		st := s.Connect(Pod{Namespace: "test", Name: "pod"})
		for flush := range 4 {
			at := s.started.Add(time.Duration(flush) * 5 * time.Second)
			b := &Batch{Timestamp: at.UnixMilli(), Buckets: []Bucket{{UpperBound: 1, Count: MaxIntervalCount / 2}, {UpperBound: 2, Count: MaxIntervalCount}}}
			for key := range uint64(series) {
				b.Samples = append(b.Samples, Sample{Key: key + 1, Timestamp: b.Timestamp, Kind: Histogram, Count: MaxIntervalCount, Last: 2})
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := st.Commit(at, b, byKey{b}); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			bytes = after.TotalAlloc - before.TotalAlloc
		}
		return bytes
	}
	if few, many := flushed(100), flushed(2000); many > 40*max(few, 10_000) {
		t.Errorf("a flush of 20 times as many histograms allocates %d bytes for %d", many, few)
	}
}

// A pod that there is no room for may send what cannot be read too.
func TestAMessageMissedOfAPodThatIsRefusedIsNothing(t *testing.T) {
	s, err := New(Config{MaxPods: 1})
	if err != nil {
		t.Fatal(err)
	}
	s.Connect(Pod{Namespace: "test", Name: "first"})
	s.Connect(Pod{Namespace: "test", Name: "second"}).Missed(s.started)
}

// unreadableFrom is a description of samples, of which those from some key on cannot be read.
type unreadableFrom struct {
	numbered
	key   uint64
	asked *int
}

func (d unreadableFrom) Describe(i int) (string, []Label, error) {
	*d.asked++
	if d.batch.Samples[i].Key >= d.key {
		return "", nil, errors.New("a reserved label")
	}
	return d.numbered.Describe(i)
}

// A message may hold a million series that cannot be read: in five seconds no more of them are
// looked at than a pod may have. The known ones count, and a new one that can be read is taken
// later.
func TestSeriesThatCannotBeReadAreNotAllLookedAt(t *testing.T) {
	const most = 2000
	s, err := New(Config{MaxSeriesPerPod: most})
	if err != nil {
		t.Fatal(err)
	}
	st, asked, at := s.Connect(Pod{Namespace: "test", Name: "pod"}), 0, s.started
	commit := func(keys uint64) error {
		b := counters(at, 1, keys)
		return st.Commit(at, b, unreadableFrom{numbered{batch: b}, 11, &asked})
	}
	if err := commit(11); err != nil || asked != 10 {
		t.Fatalf("%d are asked for: %v", asked, err)
	}
	for flush := range 4 { // within five seconds
		at = at.Add(time.Second)
		if _ = commit(20_000); asked > 10+most {
			t.Fatalf("flush %d: %d are asked for", flush, asked)
		}
	}
	if n := st.table.columns; len(n) != 10 || st.table.flushTime != s.millis(at) {
		t.Errorf("%d series are known", len(n))
	}
	at, asked = at.Add(5*time.Second), 0
	b := counters(at, 1, 11)
	b.Samples = append(b.Samples, Sample{Key: 1 << 40, Timestamp: b.Timestamp, Kind: Counter, Value: 1})
	if err := st.Commit(at, b, unreadableFrom{numbered{batch: b}, 1 << 50, &asked}); err != nil || len(st.table.columns) != 11 {
		t.Errorf("a flush later %d series are known: %v", len(st.table.columns), err)
	}
}
