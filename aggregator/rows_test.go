package aggregator

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// One writer whose ring grows, and label sets that come and go; readers: all series of a flush
// count the same, so every answer has one number. What is being committed at that instant is left
// out (differences.md).
func TestRingConcurrentSafe(t *testing.T) {
	s, err := New(Config{Retention: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	st := s.Connect(Pod{Namespace: "t", Name: "a"})
	var queries []*Query
	for _, expr := range []string{
		`sum by (code) (increase(istio_requests_total{code=~"k.*"}[20s]))`,
		`sum by (code) (increase(istio_request_duration_milliseconds_count[20s]))`,
	} {
		q, err := s.Register(expr)
		if err != nil {
			t.Fatal(err)
		}
		queries = append(queries, q)
	}
	var newest atomic.Int64 // milliseconds from the start of the newest flush that is through
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !done.Load() {
				at := s.started.Add(time.Duration(newest.Load()) * time.Millisecond)
				for _, q := range queries {
					a, err := q.Eval(context.Background(), at)
					if err != nil {
						t.Error(err)
					}
					for _, v := range a.Values {
						if v.V != a.Values[0].V || v.V < 0 {
							t.Errorf("at %s: %v, and another series of the same flushes %v", at, a.Values[0].V, v.V)
							return
						}
					}
				}
			}
		})
	}
	at := int64(0)
	for n := range 4_000 {
		at += 1000
		if n%1000 > 500 {
			at -= 750
		}
		commitEqual(t, st, s.started.Add(time.Duration(at)*time.Millisecond), n)
		newest.Store(at)
		if n == 1_500 {
			if _, err := s.Register("sum(rate(istio_requests_total[2m]))"); err != nil {
				t.Error(err)
			}
		}
	}
	done.Store(true)
	wg.Wait()
	if slots := st.table.ring.Slots(); slots < 256 {
		t.Errorf("the ring has %d slots: it has not grown", slots)
	}
}

// The engine's reader copies rows one by one while the writer laps it: each value is that of its
// time.
func TestTheEngineReadsWholeRowsConcurrentSafe(t *testing.T) {
	s, err := New(Config{Retention: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	p := &steady{t: t, store: s, stream: s.Connect(Pod{Namespace: "t", Name: "a", FlushInterval: 5 * time.Second}), now: s.started}
	p.flush(3, 1)
	start, column := s.started.UnixMilli(), p.stream.table.columns[0]
	var done atomic.Bool
	var wg sync.WaitGroup
	seen := 0
	wg.Go(func() {
		r := reader{store: s, mint: math.MinInt64 / 2, maxt: math.MaxInt64 / 2}
		for !done.Load() || seen == 0 {
			r.read(column, viewCounter)
			for i, at := range r.times {
				if want := float64(at-start) / 1000; r.values[i] != want {
					t.Errorf("%v at %d ms, want %v", r.values[i], at-start, want)
					return
				}
			}
			seen += len(r.times)
		}
	})
	p.flush(60_000, 1)
	done.Store(true)
	wg.Wait()
}

// commitEqual commits the n-th flush: twelve counters and six histograms that count the same, and
// one label set of many.
func commitEqual(t *testing.T, st *Stream, at time.Time, n int) {
	b := &Batch{Timestamp: at.UnixMilli()}
	var d described
	add := func(s Sample, name, code string) {
		ls := named(name, labels.FromStrings("code", code))
		s.Key, s.Timestamp = labels.StableHash(ls), b.Timestamp
		b.Samples, d = append(b.Samples, s), append(d, ls)
	}
	for k := range 12 {
		add(Sample{Kind: Counter, Value: float64(8 * (n + 1))}, "istio_requests_total", "k"+string(rune('a'+k)))
	}
	b.Buckets = []Bucket{{UpperBound: 1, Count: 3}, {UpperBound: 2, Count: 4}}
	for k := range 6 {
		add(Sample{Kind: Histogram, Value: 1, Count: 8, Last: 2}, "istio_request_duration_milliseconds", "h"+string(rune('a'+k)))
	}
	add(Sample{Kind: Counter, Value: 1}, "istio_requests_total", "churn"+string(rune('a'+n*7%3000)))
	if err := st.Commit(at, b, d); err != nil {
		t.Error(err)
	}
}
