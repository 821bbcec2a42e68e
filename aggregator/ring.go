package aggregator

import (
	"math"
	"sync/atomic"
)

// A pod's table is a ring of rows. A row is a flush: a number that only grows, and a time. Every series of the pod is a
// column: a block of slots, one a row, all columns of a table in step, so that row r of each lives at slot r & mask.
//
// One writer (the table's stream, under the table's mutex) and any number of readers share a ring without a lock.
//
//  1. claim: the writer raises generation.claim to r before it touches anything of row r. The slot of row r is that of
//     row r-len(times); so whoever reads claim = c afterwards knows that rows up to c-len(times) may be torn.
//  2. publish: a slot is written before block.last (or block.first, for a row before the first) admits its row, and the
//     row's time before any of them. generation.head follows the time.
//  3. final: a value that first and last admit is never written again, until its row is claimed away.
//     A row's time may be corrected, towards the row before, while its table is young (firstrow.go): a reader takes either for it.
//  4. freeze: a ring that must grow (or be packed) is copied to a new generation, every column's block pointer is switched, and the
//     old generation is never written again. A reader that still holds an old block sees the past of the switch, whole.
//
// A generation says which row is its first that still is there (generation.first): nobody else derives it from the claim, since rows that
// were overwritten before the ring grew have slots again, which never held them.
//
// A reader loads the column's block, then claim and head, finds the rows that it wants among those that the claim had not
// yet taken, then loads first and last, reads the rows that they admit, and loads claim again: if the oldest row that it wanted has
// been claimed in between, it starts over (torn). It never waits for the writer: a row that is being written is simply not
// admitted yet. Rows wanted are the same for all columns of a generation, so they are looked up once for many (scan.go).
//
// Everything shared is a sync/atomic type, so the race detector proves nothing about this protocol; steps_test.go has readers look
// after each of the writer's stores, breaks each rule on purpose and shows that a wrong value is seen.
type generation struct {
	claim atomic.Int64 // newest row whose slots may be written; -1 before the first
	head  atomic.Int64 // newest row with a time; -1 before the first
	times []atomic.Int64
	mask  int64
	begin int64        // the first row that was copied here; 0 in a table's first generation
	bound atomic.Int64 // what bounds the length of the table's first row in milliseconds until it is measured, then 0 (firstrow.go)
	hook  hook
}

func newGeneration(slots int, begin int64, h hook) *generation {
	g := &generation{times: make([]atomic.Int64, slots), mask: int64(slots) - 1, begin: begin, hook: h}
	g.claim.Store(-1)
	g.head.Store(-1)
	return g
}

func (g *generation) slots() int64         { return g.mask + 1 }
func (g *generation) time(row int64) int64 { return g.times[row&g.mask].Load() }

// first returns the oldest row that is there: neither overwritten before the ring moved to this generation nor claimed since.
func (g *generation) first() int64 { return max(g.begin, g.claim.Load()-g.slots()+1) }

// claimed reports whether the writer has claimed the slot of the row for a newer one.
func (g *generation) claimed(row int64) bool { return row < g.first() }

// newest returns the time of the newest row, or false if there is none.
func (g *generation) newest() (int64, bool) {
	for {
		r := g.head.Load()
		if r < 0 || g.claim.Load() == allClaimed {
			return 0, false
		}
		t := g.time(r)
		if !g.claimed(r) {
			return t, true
		}
	}
}

// oldest returns the time of the oldest row that is still in the ring and from which on all is known, and whether nothing is missing before
// it; or false if there is none.
func (g *generation) oldest() (time int64, first, ok bool) {
	for {
		r, head := g.first(), g.head.Load()
		if head < r {
			return 0, false, false
		}
		whole := r == 0
		if whole && head > 0 && g.unmeasured() {
			r, whole = 1, false
		}
		t := g.time(r)
		if !g.claimed(r) {
			return t, whole, true
		}
	}
}

// block is the slots of one column in one generation: some words of each row of its slab.
type block struct {
	*slab
	at int32 // its first word in a row
	shape
	first, last atomic.Int64 // the rows that are present, first to last without a hole; none: MaxInt64 and -1
}

// shape is what a row of a block consists of.
type shape struct {
	width  int16 // words
	counts int16 // cumulative counts of a histogram, +Inf last; 0: a counter
}

// newBlock returns a block whose words begin at one of the slab's rows.
func newBlock(s *slab, at int64, of shape) *block {
	b := &block{slab: s, at: int32(at), shape: of}
	b.first.Store(math.MaxInt64) // not 0: a reader that loads first, then a fresh last, must still see nothing
	b.last.Store(-1)
	return b
}

// row returns the words of a row: to a reader, who checks torn afterwards, or to the writer, who has held it.
func (b *block) row(row int64) []atomic.Uint64 {
	slot := row & b.gen.mask
	i := (slot&(1<<b.shift-1))*b.rowWords + int64(b.at)
	end := i + int64(b.width)
	return b.chunks[slot>>b.shift].Load().words[i:end:end]
}

// whole returns the i-th count of a row from its lower half. Epochs are loaded after the row, so they are its own or one ahead,
// which the shared bit tells.
func (b *block) whole(i int, low uint32) uint64 {
	epochs := b.epochs.Load()
	if epochs == nil {
		return uint64(low)
	}
	epoch := (*epochs)[2*int(b.at)+i].Load()
	epoch -= (epoch ^ uint64(low>>31)) & 1
	return epoch<<31 | uint64(low&(1<<31-1))
}

// setEpoch puts the i-th count's epoch in place. Each count has its own: readers need no two of them together.
func (b *block) setEpoch(i int, epoch uint64) {
	all := b.epochs.Load()
	if all == nil {
		made := make([]atomic.Uint64, 2*b.rowWords)
		all = &made
		b.epochs.Store(all)
	}
	(*all)[2*int(b.at)+i].Store(epoch)
}

// window returns the present rows with mint < time <= maxt; hi < lo: none. oldest is the row to check with torn.
func (b *block) window(mint, maxt int64) (lo, hi, oldest int64) {
	oldest, hi = b.gen.window(mint, maxt)
	lo, hi = b.present(oldest, hi)
	return lo, hi, oldest
}

// present returns those of the rows lo to hi that are present; hi < lo: none.
func (b *block) present(lo, hi int64) (int64, int64) {
	return max(lo, b.first.Load()), min(hi, b.last.Load())
}

// torn reports whether the writer has meanwhile claimed the slot of the row, so that what was read may be mixed.
func (b *block) torn(row int64) bool { return b.gen.claimed(row) }

// window returns the rows with mint < time <= maxt; hi < lo: none. The writer had claimed none of them when it was looked up.
func (g *generation) window(mint, maxt int64) (lo, hi int64) {
	for {
		oldest := g.first()
		hi = g.head.Load()
		lo = g.after(oldest, hi, mint)
		if hi >= lo && g.time(hi) > maxt {
			hi = g.after(lo, hi, maxt) - 1
		}
		if lo == 0 && g.unbounded(mint, maxt) {
			lo = 1
		}
		if !g.claimed(oldest) {
			return lo, hi
		}
	}
}

// after returns the first row from lo to hi whose time is after t, hi+1 if there is none.
func (g *generation) after(lo, hi, t int64) int64 {
	hi++
	for lo < hi {
		m := int64(uint64(lo+hi) >> 1)
		if g.time(m) > t {
			hi = m
		} else {
			lo = m + 1
		}
	}
	return lo
}

// The writer's side. ring is the writer's view of the newest generation.
type ring struct {
	gen *generation
	row int64 // newest row, -1 before the first
}

func newRing(slots int, h hook) ring { return ring{gen: newGeneration(slots, 0, h), row: -1} }

// open claims the next row and gives it its time. The row has no values until columns are set.
func (r *ring) open(time int64) {
	r.row++
	r.gen.claimTo(r.row)
	r.gen.setTime(r.row, time)
	r.gen.headTo(r.row)
}

// claimAll leaves readers without a row, for good.
func (g *generation) claimAll() { g.claimTo(allClaimed) }

const allClaimed = math.MaxInt64 / 2

func (g *generation) claimTo(row int64) {
	g.claim.Store(row)
	g.hook.after(stepClaim)
}

func (g *generation) setTime(row, time int64) {
	g.times[row&g.mask].Store(time)
	g.hook.after(stepTime)
}

func (g *generation) headTo(row int64) {
	g.head.Store(row)
	g.hook.after(stepHead)
}

// admit publishes a row whose words are written: the next after last, or the first of all.
func (b *block) admit(row int64) {
	if b.first.Load() > row {
		b.admitFrom(row)
	}
	b.last.Store(row)
	b.gen.hook.after(stepLast)
}

// admitFrom publishes a row before the first one, whose words are written.
func (b *block) admitFrom(row int64) {
	b.first.Store(row)
	b.gen.hook.after(stepFirst)
}

// moved returns a ring of so many slots with the same rows. The old generation stays as it is for whoever reads it.
func (r *ring) moved(slots int64) ring {
	old := r.gen
	g := newGeneration(int(slots), max(old.first(), r.row-slots+1), old.hook)
	g.bound.Store(old.bound.Load())
	for row := g.begin; row <= r.row; row++ {
		g.setTime(row, old.time(row))
	}
	g.claimTo(r.row)
	g.headTo(r.row)
	return ring{gen: g, row: r.row}
}

// copyTo copies the block's rows to one of another generation.
func (b *block) copyTo(n *block) {
	if epochs := b.epochs.Load(); epochs != nil {
		for i := range int(b.counts) {
			n.setEpoch(i, (*epochs)[2*int(b.at)+i].Load())
		}
		n.gen.hook.after(stepEpochs)
	}
	first, last := max(b.first.Load(), b.gen.first(), n.gen.begin), b.last.Load()
	for row := first; row <= last; row++ {
		n.hold(row)
		src, dst := b.row(row), n.row(row)
		for i := range src {
			dst[i].Store(src[i].Load())
		}
	}
	n.admitFrom(first)
	n.last.Store(last)
	n.gen.hook.after(stepLast)
}
