package aggregator

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// Members that go one by one cost a copy of the others now and then, not each time, and those that
// stay are all there.
func TestMembersOfAListGoInLinearTime(t *testing.T) {
	type member struct{ gone bool }
	const n = 4096
	var l list[*member]
	var members []*member
	for range n {
		members = append(members, &member{})
		l.add(members[len(members)-1])
	}
	looked := 0
	gone := func(m *member) bool {
		looked++
		return m.gone
	}
	for i, m := range members {
		m.gone = true
		if left := l.leave(gone); left != n-i-1 {
			t.Fatalf("%d are left of %d", left, n-i-1)
		}
		there := 0
		for _, m := range l.all() {
			if !m.gone {
				there++
			}
		}
		if there != n-i-1 {
			t.Fatalf("%d are there of %d", there, n-i-1)
		}
	}
	if looked > 4*n {
		t.Errorf("%d members were looked at while %d went", looked, n)
	}
	if len(l.all()) != 0 {
		t.Errorf("%d of those that are gone are kept", len(l.all()))
	}
}

// Pods whose series share their label sets, with each other and in a registered query, are freed
// without a copy of all the others for each of them: what freeing one allocates does not depend on
// how many there are.
func TestManyPodsAreFreedInLinearTime(t *testing.T) {
	if !inAProcessOfItsOwn(t) {
		return
	}
	free := func(pods int) (bytes uint64) {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		q, err := s.Register("sum(rate(istio_requests_total[1m]))")
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		for i := range pods {
			st := s.Connect(Pod{Namespace: "test", Name: fmt.Sprint("pod-", i)})
			b := counters(s.started, 1, 9)
			if err := st.Commit(s.started, b, numbered{batch: b}); err != nil {
				t.Fatal(err)
			}
			st.Close()
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s.sweep(t.Context(), s.millis(s.started.Add(time.Hour)))
		runtime.ReadMemStats(&after)
		if n := s.tables.count() + len(s.tables.all.all()) + len(q.selectors[0].selections.all()) + len(s.classes.named("istio_requests_total")); n != 0 {
			t.Errorf("of %d pods and their label sets %d are left", pods, n)
		}
		return after.TotalAlloc - before.TotalAlloc
	}
	few, many := free(500), free(4000)
	if many > 16*few {
		t.Errorf("freeing 8 times as many pods allocates %d bytes for %d", many, few)
	}
}

func TestASweepEndsWithItsContext(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		s.Connect(Pod{Namespace: "test", Name: fmt.Sprint("pod-", i)}).Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.sweep(ctx, s.millis(s.started.Add(time.Hour)))
	if n := s.tables.count(); n != 10 {
		t.Errorf("%d pods of 10 are left", n)
	}
}

// Histograms that all change their bounds in one flush take no other series' place.
func TestHistogramsThatChangeTheirBoundsAreWithinTheLimit(t *testing.T) {
	const series = 50
	s, err := New(Config{MaxSeriesPerPod: series})
	if err != nil {
		t.Fatal(err)
	}
	st := s.Connect(Pod{Namespace: "test", Name: "pod"})
	for flush := range 5 {
		at := s.started.Add(time.Duration(flush) * 5 * time.Second)
		b := &Batch{Timestamp: at.UnixMilli(), Buckets: []Bucket{{UpperBound: float64(10 + flush/2)}}}
		for key := range uint64(series) {
			b.Samples = append(b.Samples, Sample{Key: key + 1, Timestamp: b.Timestamp, Kind: Histogram, Count: 3, Last: 1})
		}
		if flush == 4 {
			b.Samples = b.Samples[:series-1] // one stays as it is
		}
		if err := st.Commit(at, b, byKey{b}); err != nil {
			t.Fatalf("flush %d: %v", flush, err)
		}
	}
	st.Close()
	if n := len(st.table.columns); n != series || s.series.Taken() != series {
		t.Errorf("%d columns and %d series, want %d", n, s.series.Taken(), series)
	}
	if got := testutil.ToFloat64(s.metrics.rebounded); got != 2*series-1 {
		t.Errorf("%v histograms changed their bounds, want %d", got, 2*series-1)
	}
}
