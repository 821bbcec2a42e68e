package aggregator

import (
	"testing"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// Each breakage makes what readers find wrong in one way.
func TestEachBrokenOrderIsSeen(t *testing.T) {
	each := func(l *looking, do func(*ring.Block)) {
		for _, c := range l.stream.table.columns {
			if b := c.block.Load(); b != nil {
				do(b)
			}
		}
	}
	counted := func(l *looking) (found *ring.Block) {
		each(l, func(b *ring.Block) {
			if b.Counts() > 0 {
				found = b
			}
		})
		return found
	}
	var frozen *ring.Block
	var totals []uint64
	for name, breaks := range map[string]func(*looking, ring.Step){
		"a row is claimed after it got its time": func(l *looking, s ring.Step) {
			if g := l.stream.table.ring.Rows(); s == ring.StepClaim {
				claimOf(g).Add(-1)
			} else if s == ring.StepHead && claimOf(g).Load() < headOf(g).Load() {
				claimOf(g).Add(1)
			}
		},
		"a row is claimed after its words are written": func(l *looking, s ring.Step) {
			if g := l.stream.table.ring.Rows(); s == ring.StepClaim {
				claimOf(g).Add(-1)
			} else if s == stepClosed {
				claimOf(g).Store(headOf(g).Load())
			}
		},
		"a row is the newest before it has its time": func(l *looking, s ring.Step) {
			if g := l.stream.table.ring.Rows(); s == ring.StepClaim {
				headOf(g).Store(claimOf(g).Load())
			}
		},
		"a row is admitted before its words are written": func(l *looking, s ring.Step) {
			if s == ring.StepHead && l.stream.table.ring.Newest() > 0 {
				each(l, func(b *ring.Block) {
					if lastOf(b).Load() >= 0 {
						lastOf(b).Store(int64(l.stream.table.ring.Newest()))
					}
				})
			}
		},
		"a first row is admitted before its words are written": func(l *looking, s ring.Step) {
			if s == stepBlock {
				each(l, func(b *ring.Block) {
					if lastOf(b).Load() < 0 {
						l.stream.table.ring.PutCounter(b, 0)
					}
				})
			}
		},
		"an admitted row is written again": func(l *looking, s ring.Step) {
			if b := counted(l); s == ring.StepLast && b != nil && lastOf(b).Load() >= 0 {
				wordsOf(b, ring.Row(lastOf(b).Load()))[0].Add(1)
			}
		},
		"an old generation is written": func(l *looking, s ring.Step) {
			switch row := l.stream.table.ring.Newest(); {
			case s == stepClosed:
				frozen = counted(l)
			case s == stepGeneration && frozen != nil && frozen.Rows() != l.stream.table.ring.Rows():
				wordsOf(frozen, row)[0].Add(1 << 32)
			}
		},
		"a generation is shown before its blocks": func(l *looking, s ring.Step) {
			each(l, func(b *ring.Block) {
				if s == stepBlock && b.Rows() != l.stream.table.ring.Rows() {
					l.stream.table.gen.Store(b.Rows())
				}
			})
		},
		"a block is shown before rows are copied to it": func(l *looking, s ring.Step) {
			each(l, func(b *ring.Block) {
				if last := lastOf(b).Load(); s == stepBlock && last >= 0 {
					lastOf(b).Store(-1)
					l.breaks = nil
					l.look(s)
					lastOf(b).Store(last)
				}
			})
		},
		"a ring that has grown takes slots for rows": func(l *looking, s ring.Step) {
			if s == stepGeneration {
				*beginOf(l.stream.table.ring.Rows()) = 0
			}
		},
		"totals are replaced after the row is admitted": func(l *looking, s ring.Step) {
			b := counted(l)
			switch {
			case b == nil:
			case s == ring.StepTotals && l.stream.table.ring.Rows() == b.Rows():
				now := loadTotals(b)
				storeTotals(b, totals)
				totals = now
			case s == stepClosed:
				storeTotals(b, totals)
			case s == ring.StepHead:
				totals = loadTotals(b)
			}
		},
		"a row is closed before series are carried forward": func(l *looking, s ring.Step) {
			if s == ring.StepHead {
				l.stream.table.closed.Store(int64(l.stream.table.ring.Newest()))
			}
		},
		"a pod is selected before its series": func(l *looking, s ring.Step) {
			if sels := l.counters.selectors[0].selections.all(); s == stepSelected && len(sels) > 0 {
				columns := sels[0].columns.head.Swap(nil)
				l.breaks = nil
				l.look(s)
				sels[0].columns.head.Store(columns)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			frozen, totals = nil, nil
			l := lookAtEveryStep(t, false, breaks)
			if l.wrong == 0 {
				t.Error("the readers see nothing wrong")
			}
		})
	}
	t.Run("readers do not look again at what is claimed", func(t *testing.T) {
		if l := lookAtEveryStep(t, true, nil); l.wrong == 0 {
			t.Error("the readers see nothing wrong")
		}
	})
}

func loadTotals(b *ring.Block) []uint64 {
	totals := make([]uint64, b.Counts())
	for i := range totalsOf(b) {
		totals[i] = totalsOf(b)[i].Load()
	}
	return totals
}

func storeTotals(b *ring.Block, totals []uint64) {
	for i := range totalsOf(b)[:min(len(totals), len(totalsOf(b)))] {
		totalsOf(b)[i].Store(totals[i])
	}
}
