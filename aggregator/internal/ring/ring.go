package ring

import "math"

// Ring is the writer's side: the newest generation of the rows, and what of it is used. It belongs
// to one writer at a time.
type Ring struct {
	rows *Rows
	row  Row // newest row, -1 before the first
	// live and dead are the words a row of columns that are there, and of removed ones that share a
	// slab with such.
	live, dead int64
}

// New returns a ring of so many slots, a power of two. The hook is nil but in tests.
func New(slots int64, h Hook) Ring { return Ring{rows: newRows(slots, 0, h), row: -1} }

// Rows are what readers see of the ring.
func (r *Ring) Rows() *Rows { return r.rows }

// Newest is the newest row, -1 before the first.
func (r *Ring) Newest() Row { return r.row }

// Slots is how many rows there is room for.
func (r *Ring) Slots() int64 { return r.rows.slots() }

// Words is how many words a row takes beside its time: of columns that are there, and of removed
// ones that share memory with such.
func (r *Ring) Words() (live, dead int64) { return r.live, r.dead }

// Open claims the next row and gives it its time. The row has no values until columns are set.
func (r *Ring) Open(time int64) {
	r.row++
	r.rows.claimTo(int64(r.row))
	r.rows.setTime(r.row, time)
	r.rows.headTo(r.row)
}

// End leaves readers without a row, for good: of the ring, and of other generations.
func (r *Ring) End(also ...*Rows) {
	r.rows.claimTo(allClaimed)
	for _, g := range also {
		g.claimTo(allClaimed)
	}
}

const allClaimed = math.MaxInt64 / 2

func (g *Rows) claimTo(row int64) {
	g.claim.Store(row)
	g.hook.After(StepClaim)
}

func (g *Rows) setTime(row Row, time int64) {
	g.times[int64(row)&g.mask].Store(time)
	g.hook.After(StepTime)
}

func (g *Rows) headTo(row Row) {
	g.head.Store(int64(row))
	g.hook.After(StepHead)
}

// BoundFirst says that the length of the first row is a guess, and what bounds it in milliseconds:
// MaxInt64 if nothing does. It is said before the row is opened.
func (r *Ring) BoundFirst(bound int64) { r.rows.bound.Store(bound) }

// MeasureFirst corrects the length of the first row, in milliseconds.
func (r *Ring) MeasureFirst(length int64) {
	if r.rows.First() == 0 { // else it has been overwritten: the flush came in many rows
		r.rows.setTime(0, r.rows.Time(1)-length)
	}
	r.rows.bound.Store(0)
}

// PullBack moves the times of the newest rows, from one on, towards the row before: oldest first,
// so the times of rows grow at any instant.
func (r *Ring) PullBack(from Row, by int64) {
	for row := from; row <= r.row; row++ {
		r.rows.setTime(row, r.rows.Time(row)-by)
	}
}

// Blocks returns empty blocks of the shapes, which lie together in memory.
func (r *Ring) Blocks(shapes []Shape) []*Block {
	if len(shapes) == 0 {
		return nil
	}
	words := 0
	for _, s := range shapes {
		words += s.Words()
	}
	s := newSlab(r.rows, words)
	s.live = int64(words)
	r.live += s.live
	blocks, at := make([]*Block, len(shapes)), int64(0)
	for i, shape := range shapes {
		blocks[i] = newBlock(s, at, shape)
		at += int64(shape.width)
	}
	return blocks
}

// Leave gives up a block. The words of those that lie together are freed when all of them are gone,
// or when the ring moves.
func (r *Ring) Leave(b *Block) {
	width := int64(b.width)
	r.live -= width
	if b.live -= width; b.live > 0 {
		r.dead += width
	} else {
		r.dead -= b.rowWords - width
	}
}

// Moved returns a ring of so many slots with the same rows, and the given blocks of it, which lie
// together. The old generation stays as it is for whoever reads it.
func (r *Ring) Moved(slots int64, blocks []*Block) (Ring, []*Block) {
	old := r.rows
	g := newRows(slots, max(old.First(), r.row-Row(slots)+1), old.hook)
	g.bound.Store(old.bound.Load())
	for row := g.begin; row <= r.row; row++ {
		g.setTime(row, old.Time(row))
	}
	g.claimTo(int64(r.row))
	g.headTo(r.row)
	moved := Ring{rows: g, row: r.row}
	shapes := make([]Shape, len(blocks))
	for i, b := range blocks {
		shapes[i] = b.Shape
	}
	to := moved.Blocks(shapes)
	for i, b := range blocks {
		b.copyTo(to[i])
	}
	return moved, to
}

// copyTo copies the block's rows to one of another generation.
func (b *Block) copyTo(n *Block) {
	if totals := b.totals.Load(); totals != nil {
		for i := range int(b.counts) {
			n.setTotal(i, (*totals)[2*int(b.at)+i].Load())
		}
		n.rows.hook.After(StepTotals)
	}
	first, last := max(Row(b.first.Load()), b.rows.First(), n.rows.begin), Row(b.last.Load())
	for row := first; row <= last; row++ {
		n.hold(row)
		src, dst := b.words(row), n.words(row)
		for i := range src {
			dst[i].Store(src[i].Load())
		}
	}
	n.admitFrom(first)
	n.last.Store(int64(last))
	n.rows.hook.After(StepLast)
}

// admit publishes a row whose words are written: the next after last, or the first of all.
func (b *Block) admit(row Row) {
	if b.first.Load() > int64(row) {
		b.admitFrom(row)
	}
	b.last.Store(int64(row))
	b.rows.hook.After(StepLast)
}

// admitFrom publishes a row before the first one, whose words are written.
func (b *Block) admitFrom(row Row) {
	b.first.Store(int64(row))
	b.rows.hook.After(StepFirst)
}

// PutPast publishes what a column held one row before the newest: of a counter its value, else
// nothing. It comes before all others of a block.
func (r *Ring) PutPast(b *Block, counter float64) {
	b.hold(r.row - 1)
	words := b.words(r.row - 1)
	for i := range words {
		words[i].Store(0)
	}
	words[0].Store(math.Float64bits(counter)) // nothing, of a histogram
	b.admitFrom(r.row - 1)
}

// PutCounter publishes a counter's value as the newest row's.
func (r *Ring) PutCounter(b *Block, v float64) {
	b.hold(r.row)
	b.words(r.row)[0].Store(math.Float64bits(v))
	b.admit(r.row)
}
