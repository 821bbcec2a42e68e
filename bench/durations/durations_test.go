package durations

import (
	"math"
	"testing"
)

func TestADurationIsWithinTheEdgesOfItsBin(t *testing.T) {
	for bin := range (&Recorded{}).Bins {
		from, to := Edges(bin)
		if got := BinOf(from); got != bin {
			t.Errorf("bin %d begins at %v, which is in bin %d", bin, from, got)
		}
		if next := BinOf((from + to) / 2); bin > 0 && next != bin {
			t.Errorf("the middle of bin %d is in bin %d", bin, next)
		}
	}
}

func TestABoundIsHeldToWhereTheWireTells(t *testing.T) {
	bounds := []float64{5, 10, 25, 50, 100, 250}
	dense, gap, few := &Recorded{}, &Recorded{}, &Recorded{}
	for i := range 200 {
		dense.Record(float64(10 + i/2))
		gap.Record(float64(55 + 40*(i%2))) // half at 55, half at 95: both in the bucket from 50 to 100
	}
	for range 99 {
		few.Record(20)
	}
	for name, test := range map[string]struct {
		r    *Recorded
		q    float64
		want bool
	}{
		"many, without gaps":                    {dense, 0.5, true},
		"P99 of less than a thousand":           {dense, 0.99, false},
		"a gap within one bucket at the median": {gap, 0.5, false},
		"the same gap far from the quantile":    {gap, 0.9, true},
		"less than a hundred":                   {few, 0.5, false},
	} {
		if got := test.r.Bounded(test.q, bounds); got != test.want {
			t.Errorf("%s: got %t, want %t", name, got, test.want)
		}
	}
	for q, want := range map[float64]float64{0.5: 59, 0.95: 100} { // 10 to 109 ms, two each
		bin, _ := dense.At(q)
		from, to := dense.Within(q)
		if start, _ := Edges(bin); start != want || !(from < want && want < to) {
			t.Errorf("quantile %v: in the bin from %v, within [%v, %v], want %v", q, start, from, to, want)
		}
	}
	if _, place := (&Recorded{}).At(0.5); !math.IsNaN(place) {
		t.Errorf("nothing has a quantile: %v", place)
	}
}
