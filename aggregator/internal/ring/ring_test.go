package ring

import (
	"math"
	"testing"
)

// wordOf is what a row's word holds in tests of blocks.
func wordOf(row Row, i int) uint64 { return uint64(row)<<8 | uint64(i) }

const testWidth = 4

// newTestBlock returns a block between two others.
func newTestBlock(g *Rows) *Block {
	return newBlock(newSlab(g, testWidth+2), 1, Shape{width: testWidth})
}

func TestRingKeepsRowsWhenItGrows(t *testing.T) {
	r := New(4, nil)
	b := newTestBlock(r.rows)
	write := func() {
		r.Open(int64(10 * (r.row + 1)))
		b.hold(r.row)
		for i := range b.words(r.row) {
			b.words(r.row)[i].Store(wordOf(r.row, i))
		}
		b.admit(r.row)
	}
	check := func(first, last Row) {
		t.Helper()
		lo, hi, _ := b.Window(math.MinInt64, math.MaxInt64)
		if lo != first || hi != last || r.rows.First() != first {
			t.Errorf("rows %d to %d, the ring's first is %d; want %d to %d", lo, hi, r.rows.First(), first, last)
		}
		for row := lo; row <= hi; row++ {
			for i := range b.words(row) {
				if got := b.words(row)[i].Load(); got != wordOf(row, i) || r.rows.Time(row) != int64(10*row) {
					t.Errorf("row %d, word %d: %d at %d, want %d", row, i, got, r.rows.Time(row), wordOf(row, i))
				}
			}
		}
	}
	for range 6 {
		write()
	}
	check(2, 5)
	for _, slots := range []int64{8, 16} { // it grows again before what was overwritten is out of its reach
		moved, blocks := r.Moved(slots, []*Block{b})
		r, b = moved, blocks[0]
		write()
	}
	check(2, 7)
	write()
	for _, c := range []struct {
		mint, maxt int64
		lo, hi     Row
	}{
		{20, 40, 3, 4}, {19, 39, 2, 3}, {0, 1000, 2, 8}, {80, 1000, 9, 8}, {0, 10, 2, 1},
	} {
		if lo, hi, _ := b.Window(c.mint, c.maxt); lo != c.lo || hi != c.hi {
			t.Errorf("window (%d, %d]: rows %d to %d, want %d to %d", c.mint, c.maxt, lo, hi, c.lo, c.hi)
		}
	}
	for r.row < 17 {
		write()
	}
	check(2, 17)
	write()
	check(3, 18)
}

// A reader may look between any two stores: it searches rows by their times.
func TestTimesOfRowsGrowWhileTheyArePulledBack(t *testing.T) {
	var r Ring
	looks := 0
	r = New(8, func(s Step) {
		looks++
		for row := Row(1); row <= r.row && s == StepTime; row++ {
			if before, at := r.rows.Time(row-1), r.rows.Time(row); at <= before {
				t.Errorf("row %d is of %d, the one before of %d", row, at, before)
			}
		}
	})
	for _, time := range []int64{0, 100, 110, 120} { // the first two are further apart than the others
		r.Open(time)
	}
	opened := looks
	r.PullBack(1, 50)
	if looks != opened+3 {
		t.Errorf("%d looks, want one after each of 3 rows", looks-opened)
	}
	for row, want := range []int64{0, 50, 60, 70} {
		if got := r.rows.Time(Row(row)); got != want {
			t.Errorf("row %d is of %d, want %d", row, got, want)
		}
	}
}
