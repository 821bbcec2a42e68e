package aggregator

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestTheBucketOfAValueIsTheOneThatItsLogarithmSays(t *testing.T) {
	tables := newFineTables()
	check := func(v float64) {
		i := int(math.Ceil(math.Log2(v)*finePerTwo-1e-9)) - fineLowest
		if want := min(max(i, 0), fineHighest-fineLowest); tables.index(v) != want {
			t.Errorf("%v: bucket %d, want %d", v, tables.index(v), want)
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 200_000 {
		check(math.Exp2(r.Float64()*60 - 8))
	}
	for v := 1; v < 100_000; v++ {
		check(float64(v))
	}
	for _, end := range tables.ends { // inclusive
		check(end)
		check(end * (1 + 1e-9))
	}
	for _, v := range []float64{1e-300, 1e300} {
		check(v)
	}
}

func TestTheBinOfAQuantileIsTheSameFromTheTable(t *testing.T) {
	tables := newFineTables()
	for code := range math.MaxUint16 {
		from, to := binOf(quantileValue(uint16(code)))
		if got := tables.bin(uint16(code)); code > 0 && (got.from != from || got.to != to) {
			t.Errorf("code %d: [%v, %v), want [%v, %v)", code, got.from, got.to, from, to)
		}
	}
}
