package aggregator

// gap is a time from which a pod has told nothing: between two of its rows, or the rows of two of
// its tables. doubt: when it was is not certain, however long it takes.
type gap struct {
	from, to int64
	doubt    bool
	before   *gap // stays where this one turns out to be none
}

// alone is the gap without the one before.
func (g *gap) alone() *gap {
	if g == nil || g.before == nil {
		return g
	}
	return &gap{g.from, g.to, g.doubt, nil}
}

// pullBack is the gap where rows from a time on are moved back.
func (g *gap) pullBack(from, late int64) *gap {
	if g == nil || g.to < from {
		return g
	}
	moved := &gap{from: g.from, doubt: g.doubt, before: g.before.pullBack(from, late)}
	if g.from >= from {
		moved.from -= late
	}
	moved.to = max(moved.from, g.to-late)
	return moved
}

// none says whether it is only as long as flushes of an interval may be apart.
func (g *gap) none(flush int64) bool { return !g.doubt && g.to-g.from <= 2*flush }
