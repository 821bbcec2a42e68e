package surge

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestBins compares with the counts themselves: an interval is good to the bins at its ends.
func TestBins(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const width = 100
	b := newBins(width, 60_000)
	type spread struct {
		from, to int64
		count    float64
	}
	var all []spread
	now := int64(1_700_000_000_000)
	for range 3000 {
		now += r.Int64N(200)
		s := spread{now - r.Int64N(5000), now + r.Int64N(300), float64(r.IntN(50))}
		if s.to <= s.from {
			continue
		}
		b.add(s.from, s.to, s.count)
		all = append(all, s)
		to := now - r.Int64N(1000)
		from := to - r.Int64N(50_000)
		want, atEnds := 0.0, 0.0
		for _, s := range all {
			part := func(from, to int64) float64 {
				return s.count * float64(max(0, min(to, s.to)-max(from, s.from))) / float64(s.to-s.from)
			}
			want += part(from, to)
			atEnds += part(from-width, from+width) + part(to-width, to+width)
		}
		if got := b.sum(from, to); math.Abs(got-want) > atEnds+1e-6 {
			t.Fatalf("%d ms: %g, want %g", to-from, got, want)
		}
	}
	wide := b.resized(250, 60_000)
	for back := int64(1000); back < 50_000; back += 1700 {
		got, want := wide.sum(now-back, now), b.sum(now-back, now)
		if math.Abs(got-want) > 0.02*want+100 {
			t.Errorf("in other bins: %g, was %g", got, want)
		}
	}
}

// Whatever times the bins are asked for, they count what was added and is not older than they
// reach.
func TestBinsTakeAnyTime(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		const width, reach = 100, 5_000
		b := newBins(width, reach)
		at := func() int64 {
			switch r.IntN(4) {
			case 0:
				return r.Int64N(20_000) - 5_000
			case 1:
				return r.Int64N(3_000)
			}
			return 1_700_000_000_000 + r.Int64N(20_000)
		}
		all := 0.0
		for range 50 {
			from := at()
			to := from + r.Int64N(2_000)
			b.add(from, to, 1)
			all++
			if n := b.sum(at(), at()); n < 0 || n > all+1e-6 {
				t.Fatalf("%v of %v were counted", n, all)
			}
			if r.IntN(10) == 0 {
				b = b.resized(width+r.Int64N(100), reach)
			}
		}
	}
	b := newBins(100, 5_000)
	b.add(0, 1_000, 10)
	if n := b.sum(-1_000_000, 1_000); n != 10 {
		t.Errorf("%v in all time, want 10", n)
	}
}
