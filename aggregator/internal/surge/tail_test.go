package surge

import (
	"math"
	"testing"
)

// TestCountTail compares with the negative binomial's and Poisson's own terms, added up.
func TestCountTail(t *testing.T) {
	for _, tc := range []struct{ x, mean, dispersion float64 }{{1, 2, 0}, {12, 2, 0}, {40, 10, 0}, {12, 2, 0.5}, {60, 10, 0.1}, {300, 10, 0.5}, {25, 20, 1e-3}} {
		log := func(n float64) float64 { // of the probability of n
			lg := func(v float64) float64 { l, _ := math.Lgamma(v); return l }
			if tc.dispersion == 0 {
				return n*math.Log(tc.mean) - tc.mean - lg(n+1)
			}
			r := 1 / tc.dispersion
			p := tc.mean / (r + tc.mean)
			return lg(n+r) - lg(r) - lg(n+1) + r*math.Log1p(-p) + n*math.Log(p)
		}
		want := 0.0
		for n := tc.x; n < tc.x+5000; n++ {
			want += math.Exp(log(n))
		}
		if got := countTail(tc.x, tc.mean, tc.dispersion); math.Abs(got-want) > 1e-9*want {
			t.Errorf("tail of %+v: %g, want %g", tc, got, want)
		}
	}
	if countTail(0, 1, 0.1) != 1 || countTail(3, 0, 0.1) != 0 {
		t.Error("the tail of nothing")
	}
}
