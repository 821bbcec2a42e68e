package aggregator

import (
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// The protocol of ring.go is tested by value: every word is atomic, so the race detector has nothing to say about it.
//
// A writer publishes rows of which every word can be told from row and word number; readers check that whatever they
// are given is exactly that. Each twin breaks one rule of the protocol and must be caught by the same check. The
// interleavings that matter are forced (step), not hoped for: between any two accesses of the writer a reader looks.

const testWidth = 4

func wordOf(row int64, i int) uint64 { return uint64(row)<<8 | uint64(i) }

// breakage names a rule of the protocol to break.
type breakage int

const (
	intact breakage = iota
	claimLate
	admitEarly
	rewrite
	writeFrozen
	trustTorn
)

// testWriter writes rows one access at a time and lets look run in between.
type testWriter struct {
	ring   ring
	block  *atomic.Pointer[block]
	look   func()
	breaks breakage
}

func newTestWriter(slots int, b breakage) *testWriter {
	w := &testWriter{ring: newRing(slots), block: &atomic.Pointer[block]{}, look: func() {}, breaks: b}
	w.block.Store(newTestBlock(w.ring.gen))
	return w
}

// newTestBlock returns a block between two others.
func newTestBlock(g *generation) *block {
	return newBlock(newSlab(g, testWidth+2), 1, shape{width: testWidth})
}

func (w *testWriter) write() {
	row := w.ring.row + 1
	w.block.Load().hold(row)
	fill := func() {
		words := w.block.Load().row(row)
		for i := range words {
			words[i].Store(wordOf(row, i))
			w.look()
		}
	}
	if w.breaks == claimLate { // rule 1
		fill()
	}
	w.ring.open(row * 10)
	w.look()
	if w.breaks == admitEarly { // rule 2
		w.block.Load().admit(row)
		w.look()
	}
	fill()
	w.block.Load().admit(row)
	w.look()
	if w.breaks == rewrite { // rule 3
		w.block.Load().row(row)[1].Store(wordOf(row+1, 1))
		w.look()
	}
}

func (w *testWriter) grow() {
	old := w.block.Load()
	grown := w.ring.moved(2 * w.ring.gen.slots())
	w.look()
	moved := newTestBlock(grown.gen)
	old.copyTo(moved, w.ring.row)
	w.block.Store(moved)
	if w.breaks == writeFrozen { // rule 4: the old generation is written after the switch
		words := old.row(w.ring.row + 1)
		for i := range words {
			words[i].Store(wordOf(w.ring.row+1, i))
			w.look()
		}
		w.ring = grown
		return
	}
	w.ring = grown
	w.look()
}

// snapshot reads rows as every reader of the package does, and returns how many values were not what was written.
func snapshot(p *atomic.Pointer[block], pause func(), b breakage) (rows, wrong int) {
	for {
		blk := p.Load()
		lo, hi, oldest := blk.window(math.MinInt64, math.MaxInt64)
		pause()
		rows, wrong = 0, 0
		for r := lo; r <= hi; r++ {
			if blk.gen.time(r) != r*10 {
				wrong++
			}
			words := blk.row(r)
			for i := range words {
				if words[i].Load() != wordOf(r, i) {
					wrong++
				}
			}
			rows++
		}
		if b == trustTorn || hi < lo || !blk.torn(oldest) {
			return rows, wrong
		}
	}
}

// lookAtEveryStep counts the wrong values that a reader sees which runs, whole, between any two accesses of the writer,
// and one that loads its bounds at one step and its values at the next.
func lookAtEveryStep(b breakage) (wrong int) {
	w := newTestWriter(4, b)
	type half struct {
		blk            *block
		lo, hi, oldest int64
	}
	var pending []half
	w.look = func() {
		_, n := snapshot(w.block, func() {}, b)
		wrong += n
		for _, h := range pending { // bounds loaded one to seven accesses ago, values now
			bad := 0
			for r := h.lo; r <= h.hi; r++ {
				words := h.blk.row(r)
				for i := range words {
					if words[i].Load() != wordOf(r, i) {
						bad++
					}
				}
			}
			if h.hi >= h.lo && (b == trustTorn || !h.blk.torn(h.oldest)) {
				wrong += bad
			}
		}
		blk := w.block.Load()
		lo, hi, oldest := blk.window(math.MinInt64, math.MaxInt64)
		pending = append(pending, half{blk, lo, hi, oldest})
		if len(pending) > 7 {
			pending = pending[1:]
		}
	}
	for i := range 40 {
		if i == 13 || i == 30 {
			w.grow()
		}
		w.write()
	}
	return wrong
}

func TestRingShowsOnlyWhatWasWritten(t *testing.T) {
	if n := lookAtEveryStep(intact); n != 0 {
		t.Errorf("%d wrong values", n)
	}
}

func TestRingBrokenTwinsAreCaught(t *testing.T) {
	for name, b := range map[string]breakage{
		"claim raised after the slots are written":     claimLate,
		"row admitted before its slots are written":    admitEarly,
		"published row rewritten":                      rewrite,
		"old generation written after it was replaced": writeFrozen,
		"reader does not look at claim again":          trustTorn,
	} {
		t.Run(name, func(t *testing.T) {
			if lookAtEveryStep(b) == 0 {
				t.Error("the check does not see the broken rule")
			}
		})
	}
}

// countAtEveryStep writes the rows of two counts that grow by 2^30 and 2^31-1 a row, and counts the wrong values that a reader sees
// between any two accesses of the writer. With late, epochs are raised when the row is admitted already.
func countAtEveryStep(late bool) (wrong int) {
	r := newRing(4)
	b := newBlock(newSlab(r.gen, 1), 0, shape{width: 1, counts: 2})
	steps := [2]uint64{1 << 30, 1<<31 - 1}
	look := func() {
		// Of the newest row only: since those before, and with the one that is being written, a count grows by more than 2^31.
		_, row, _ := b.window(math.MinInt64, math.MaxInt64)
		if row < 0 {
			return
		}
		word := b.row(row)[0].Load()
		for i, low := range []uint32{uint32(word), uint32(word >> 32)} {
			if b.whole(i, low) != uint64(row+1)*steps[i] {
				wrong++
			}
		}
	}
	for row := range int64(40) {
		r.open(row)
		b.hold(row)
		before := b.row(row)
		if row > 0 {
			before = b.row(row - 1)
		} else {
			before[0].Store(0)
		}
		interval, words := []Bucket{{Count: steps[0]}}, b.row(row)
		carried := b.addCounts(words, before, interval, steps[1])
		look()
		if late {
			b.admit(row)
			look()
		}
		if carried {
			b.raise(words, interval, steps[1])
			look()
		}
		b.admit(row)
		look()
	}
	return wrong
}

func TestCountsPassTheirLowerHalfWhole(t *testing.T) {
	if n := countAtEveryStep(false); n != 0 {
		t.Errorf("%d wrong values", n)
	}
	if countAtEveryStep(true) == 0 {
		t.Error("the check does not see epochs that are raised after their row was admitted")
	}
}

func TestRingConcurrentSafe(t *testing.T) {
	w := newTestWriter(8, intact)
	var wg sync.WaitGroup
	var stop atomic.Bool
	var wrong, seen atomic.Int64
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				rows, n := snapshot(w.block, runtime.Gosched, intact)
				wrong.Add(int64(n))
				seen.Add(int64(rows))
			}
		})
	}
	for i := range 20_000 {
		if i%7_000 == 6_999 {
			w.grow()
		}
		w.write()
		if i%16 == 0 {
			runtime.Gosched()
		}
	}
	for seen.Load() == 0 {
		runtime.Gosched()
	}
	stop.Store(true)
	wg.Wait()
	if wrong.Load() != 0 {
		t.Errorf("%d wrong values in %d rows", wrong.Load(), seen.Load())
	}
}

// A reader that has the newest row's number looks up its time: to find a window by, before any column admits the row.
func TestHeadFollowsTheTimeConcurrentSafe(t *testing.T) {
	r := newRing(8)
	const rows = 1_000_000
	var wg sync.WaitGroup
	var wrong, seen int
	wg.Go(func() {
		for head := int64(-1); head < rows-1; {
			if head = r.gen.head.Load(); head < 0 {
				continue
			}
			if at := r.gen.time(head); at != head*10 && !r.gen.claimed(head) {
				wrong++
			}
			seen++
		}
	})
	for row := range int64(rows) {
		r.open(row * 10)
	}
	wg.Wait()
	if wrong != 0 || seen == 0 {
		t.Errorf("%d wrong times of %d", wrong, seen)
	}
}

func TestRingKeepsRowsWhenItGrows(t *testing.T) {
	w := newTestWriter(4, intact)
	for range 6 {
		w.write()
	}
	w.grow()
	for range 3 {
		w.write()
	}
	b := w.block.Load()
	lo, hi, _ := b.window(math.MinInt64, math.MaxInt64)
	if lo != 2 || hi != 8 {
		t.Errorf("rows %d to %d, want 2 to 8", lo, hi)
	}
	for _, c := range []struct{ mint, maxt, lo, hi int64 }{
		{20, 40, 3, 4}, {19, 39, 2, 3}, {0, 1000, 2, 8}, {80, 1000, 9, 8}, {0, 10, 2, 1},
	} {
		if lo, hi, _ := b.window(c.mint, c.maxt); lo != c.lo || hi != c.hi {
			t.Errorf("window (%d, %d]: rows %d to %d, want %d to %d", c.mint, c.maxt, lo, hi, c.lo, c.hi)
		}
	}
}
