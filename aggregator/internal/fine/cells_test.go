package fine

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/meshpulse/meshpulse/bench/durations"
)

func TestACellIsABinOfEnvoys(t *testing.T) {
	cell := -1
	for bin := range (durations.Recorded{}).Bins {
		from, to := durations.Edges(bin)
		if from != math.Floor(from) { // holds no whole number
			continue
		}
		cell++
		if got := cellFrom(cell); math.Abs(got-from) > 1e-9*from {
			t.Errorf("cell %d begins at %v, want %v", cell, got, from)
		}
		for place := range 100 {
			v := from + (to-from)*(float64(place)+0.5)/100
			if got, at := locate(v); got != cell || to > 0 && math.Abs(at-(float64(place)+0.5)/100) > 1e-9 {
				t.Errorf("%v is at %v of cell %d, want %d of 100 of %d", v, at, got, place, cell)
			}
			code := codeOf(v)
			if got, at := cellOf(code); got != cell || to > 0 && at != int((float64(place)+0.5)/100*cellPlaces) {
				t.Errorf("%v: code %d is place %d of cell %d, want cell %d", v, code, at, got, cell)
			}
		}
	}
}

func TestQuantilesThatNoBinHoldsHaveACodeOrNone(t *testing.T) {
	for v, want := range map[float64]int{0: 0, 0.3: 0, 7.5: 7, 1e15: cellCount - 1, math.MaxFloat64: cellCount - 1} {
		code := codeOf(v)
		if got, place := cellOf(code); code == 0 || got != want || place < 0 || place >= cellPlaces {
			t.Errorf("%v: code %d of cell %d, want %d", v, code, got, want)
		}
	}
	for _, v := range []float64{math.NaN(), -1, math.Inf(1), math.Inf(-1)} {
		if code := codeOf(v); code != 0 {
			t.Errorf("%v: code %d, want none", v, code)
		}
	}
}

// As a sidecar of Envoy 1.37 was seen to tell 20 requests of 1000 ms, and 10 of 3 ms with 10 of
// 1000 ms.
func TestAnOlderQuantileAtTheEndOfItsBinIsInIt(t *testing.T) {
	for _, c := range []struct {
		q, v float64
		cell float64
	}{{0, 1000, 1000}, {.25, 1025, 1000}, {.5, 1050, 1000}, {1, 1100, 1000}, {0, 3, 3}, {.25, 3.05, 3}, {.5, 3.1, 3}, {.75, 1050, 1000}, {1, 100, 99}, {.5, 0, 0}} {
		cell, _ := cellOf(olderCode(c.q, c.v))
		if cellFrom(cell) != c.cell {
			t.Errorf("quantile %v at %v is in the cell of %v, want %v", c.q, c.v, cellFrom(cell), c.cell)
		}
	}
}

func TestABucketEndsWhereTheRuleOfItsEnvoySays(t *testing.T) {
	bounds := []float64{0, 0.5, 1, 2, 2.5, 5, 5.05, 5.1, 9.9, 10, 12.5, 25, 99, 99.5, 100, 105, 110, 125, 250, 995, 1000, 1050, 2500, 60000, 3600000}
	for _, inclusive := range []bool{true, false} {
		for _, b := range bounds {
			for bin := range (durations.Recorded{}).Bins {
				var r durations.Recorded
				r.Bins[bin] = 1
				from, _ := durations.Edges(bin)
				if from != math.Floor(from) {
					continue
				}
				cell, _ := locate(from)
				counted := r.Below(b, inclusive) == 1
				if got := cell < int(CellsBelow(b, inclusive)); got != counted {
					t.Errorf("bound %v, inclusive %t, bin from %v: %t, want %t", b, inclusive, from, got, counted)
				}
			}
		}
	}
	if got := CellsBelow(-1, true); got != 0 {
		t.Errorf("a bucket below 0 holds %d cells", got)
	}
}

func TestACellIsDividedAmongTheNativeBucketsThatItLiesIn(t *testing.T) {
	tables := NewTables()
	for c := 1; c < cellCount; c++ {
		from, to := tables.from[c], tables.from[c+1]
		if c < wholeCells {
			to = from
		}
		total := 0.0
		for i, share := range tables.shares[c] {
			bucket := int(tables.first[c]) + i
			lower, upper := math.Exp2(float64(bucket-1)/perTwo), math.Exp2(float64(bucket)/perTwo)
			if share > 1e-9 && (upper < from*(1-1e-9) || lower > to*(1+1e-9)) {
				t.Errorf("cell [%v, %v) has %v in the bucket (%v, %v]", from, to, share, lower, upper)
			}
			total += share
		}
		if math.Abs(total-1) > 1e-9 {
			t.Errorf("cell %d is %v in all", c, total)
		}
	}
}

// FuzzJoin: whatever a sidecar sends, each request is counted once, in a cell.
func FuzzJoin(f *testing.F) {
	f.Add(uint64(1), []byte{5, 10, 20}, true)
	f.Add(uint64(2), []byte{0, 200, 0, 1}, false)
	f.Fuzz(func(t *testing.T, seed uint64, flushes []byte, wild bool) {
		r := rand.New(rand.NewPCG(seed, 3))
		tables := NewTables()
		j, all := NewJoiner(tables), 0.0
		bounds := []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}
		var ends []uint16
		for _, b := range bounds {
			ends = append(ends, CellsBelow(b, true))
		}
		for _, requests := range flushes[:min(len(flushes), 50)] {
			at, wide := 2*math.Pow(2000, r.Float64()), 3*r.Float64()*float64(r.IntN(2)) // one value, or many
			var flush durations.Recorded
			for range requests {
				flush.Record(min(at*math.Exp(wide*r.NormFloat64()), 3e6))
			}
			var cumulative []uint32
			inclusive := r.IntN(2) == 0
			for _, b := range bounds {
				cumulative = append(cumulative, uint32(flush.Below(b, inclusive)))
			}
			cumulative = append(cumulative, uint32(flush.Count))
			var codes [len(Quantiles)]uint16
			for i, q := range Quantiles {
				codes[i] = codeOf(flush.Quantile(q, false))
				if wild { // quantiles that do not belong to these buckets, nor to each other
					codes[i] = uint16(r.IntN(cellCount*cellPlaces + 1))
				}
			}
			if flush.Count > 0 {
				j.Take(ends, cumulative, &codes)
			}
			all += flush.Count
		}
		if all == 0 {
			return
		}
		j.shapeEvenly()
		checkTotal(t, "evenly", j.shape[j.sure.lo:j.sure.hi+1], all)
		one := &Counts{}
		j.Spread(one, 1)
		for from := range one.cells {
			if c := one.cells[from]; !(c >= 0) {
				t.Errorf("cell %d counts %v", from, c)
			}
		}
		checkTotal(t, "as the others", one.cells, all)
		j.shapeAs(one)
		checkTotal(t, "as a pool", j.shape[j.sure.lo:j.sure.hi+1], all)
		for c, e := range j.edges {
			if e != (edge{}) {
				t.Fatalf("%+v is left at cell %d", e, c)
			}
		}
		h := one.Native(tables)
		checkTotal(t, "native", append([]float64{h.ZeroCount}, h.PositiveBuckets...), all)
	})
}

func checkTotal(t *testing.T, what string, counts []float64, want float64) {
	t.Helper()
	got := 0.0
	for _, c := range counts {
		got += c
	}
	if math.Abs(got-want) > 1e-6*want {
		t.Errorf("%s: %v requests, want %v", what, got, want)
	}
}
