package aggregator

import (
	"context"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// point is a sample of a series.
type point struct {
	t int64
	v float64
}

// stored returns all series of a store as a query sees them, with their float samples.
func stored(t *testing.T, s *Store) map[string][]point {
	t.Helper()
	return storedNamed(t, s, ".+")
}

// storedNamed returns those of which the name matches an expression.
func storedNamed(t *testing.T, s *Store, name string) map[string][]point {
	t.Helper()
	q, err := queryable{s, nil}.Querier(math.MinInt64/2, math.MaxInt64/2)
	if err != nil {
		t.Fatal(err)
	}
	series := map[string][]point{}
	set := q.Select(context.Background(), true, &storage.SelectHints{Start: math.MinInt64 / 2, End: math.MaxInt64 / 2},
		labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, name))
	for set.Next() {
		ls := set.At().Labels().String()
		if _, twice := series[ls]; twice {
			t.Errorf("%s is there twice", ls)
		}
		for it := set.At().Iterator(nil); ; {
			k := it.Next()
			if k == chunkenc.ValNone {
				break
			}
			if k == chunkenc.ValFloat {
				at, v := it.At()
				series[ls] = append(series[ls], point{at, v})
			}
		}
	}
	if err := set.Err(); err != nil {
		t.Fatal(err)
	}
	return series
}

// values leaves out staleness markers.
func values(ps []point) []float64 {
	var vs []float64
	for _, p := range ps {
		if !value.IsStaleNaN(p.v) {
			vs = append(vs, p.v)
		}
	}
	return vs
}

// checkCounted lets a random fleet live and holds every series to the requests that were made. It
// returns how many were checked.
func checkCounted(t *testing.T, seed uint64) (checked int) {
	const retention = time.Minute
	f := newFleet(t, seed, retention)
	lifetime := time.Duration(20+f.r.IntN(160)) * time.Second
	f.run(lifetime)
	all := stored(t, f.store)
	for name, s := range f.all {
		vs := values(all[name])
		if len(vs) == 0 {
			if lifetime < retention {
				t.Errorf("seed %d: %s is gone", seed, name)
			}
			continue // freed after a retention of absence
		}
		checked++
		if got := vs[len(vs)-1]; got < float64(s.total) || got > float64(s.total+s.slack) {
			t.Errorf("seed %d: %s is %v, %d (and up to %d more) were counted by the sidecar", seed, name, got, s.total, s.slack)
		}
		for i := 1; i < len(vs); i++ {
			if vs[i] < vs[i-1] {
				t.Errorf("seed %d: %s falls from %v to %v", seed, name, vs[i-1], vs[i])
			}
		}
		if lifetime > retention-10*time.Second {
			continue
		}
		first := float64(s.past)
		if !s.known {
			first = vs[0] // the first value itself: nothing is known from before
		}
		if vs[0] != first && !s.unsure {
			t.Errorf("seed %d: %s starts at %v, want its past %v", seed, name, vs[0], first)
		}
		if s.alone {
			continue
		}
		count := values(all[strings.Replace(name, "istio_requests_total", "istio_request_duration_milliseconds_count", 1)])
		if len(count) == 0 && s.count == 0 {
			continue
		}
		if len(count) == 0 || count[0] != 0 || count[len(count)-1] != float64(s.count) {
			t.Errorf("seed %d: the histogram's count of %s is %v, want 0 … %d", seed, name, count, s.count)
		}
	}
	return checked
}

// TestEveryRequestCountsOnce is the ingest's promise: whatever happens to pods, connections and
// clocks, each request is counted once, and none is made up.
func TestEveryRequestCountsOnce(t *testing.T) {
	checked := 0
	for seed := range uint64(80) {
		synctest.Test(t, func(t *testing.T) { checked += checkCounted(t, seed) })
	}
	if checked < 300 {
		t.Errorf("only %d series were checked", checked)
	}
}

func FuzzEveryRequestCountsOnce(f *testing.F) {
	f.Add(uint64(1000))
	f.Fuzz(func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) { checkCounted(t, seed) })
	})
}
