package aggregator

import "testing"

// Each breakage makes what readers find wrong in one way.
func TestEachBrokenOrderIsSeen(t *testing.T) {
	each := func(l *looking, do func(*block)) {
		for _, c := range l.stream.table.columns {
			if b := c.block.Load(); b != nil {
				do(b)
			}
		}
	}
	counted := func(l *looking) (found *block) {
		each(l, func(b *block) {
			if b.counts > 0 {
				found = b
			}
		})
		return found
	}
	var frozen *block
	var epochs []uint64
	for name, breaks := range map[string]func(*looking, step){
		"a row is claimed after it got its time": func(l *looking, s step) {
			if g := l.stream.table.ring.gen; s == stepClaim {
				g.claim.Add(-1)
			} else if s == stepHead && g.claim.Load() < g.head.Load() {
				g.claim.Add(1)
			}
		},
		"a row is claimed after its words are written": func(l *looking, s step) {
			if g := l.stream.table.ring.gen; s == stepClaim {
				g.claim.Add(-1)
			} else if s == stepClosed {
				g.claim.Store(g.head.Load())
			}
		},
		"a row is the newest before it has its time": func(l *looking, s step) {
			if g := l.stream.table.ring.gen; s == stepClaim {
				g.head.Store(g.claim.Load())
			}
		},
		"a row is admitted before its words are written": func(l *looking, s step) {
			if s == stepHead && l.stream.table.ring.row > 0 {
				each(l, func(b *block) {
					if b.last.Load() >= 0 {
						b.last.Store(l.stream.table.ring.row)
					}
				})
			}
		},
		"a first row is admitted before its words are written": func(l *looking, s step) {
			if s == stepBlock {
				each(l, func(b *block) {
					if b.last.Load() < 0 {
						b.hold(l.stream.table.ring.row)
						b.first.Store(l.stream.table.ring.row)
						b.last.Store(l.stream.table.ring.row)
					}
				})
			}
		},
		"an admitted row is written again": func(l *looking, s step) {
			if b := counted(l); s == stepLast && b != nil && b.last.Load() >= 0 {
				b.row(b.last.Load())[0].Add(1)
			}
		},
		"an old generation is written": func(l *looking, s step) {
			switch row := l.stream.table.ring.row; {
			case s == stepClosed:
				frozen = counted(l)
			case s == stepGeneration && frozen != nil && frozen.gen != l.stream.table.ring.gen:
				frozen.row(row)[0].Add(1 << 32)
			}
		},
		"a generation is shown before its blocks": func(l *looking, s step) {
			each(l, func(b *block) {
				if s == stepBlock && b.gen != l.stream.table.ring.gen {
					l.stream.table.gen.Store(b.gen)
				}
			})
		},
		"a block is shown before rows are copied to it": func(l *looking, s step) {
			each(l, func(b *block) {
				if last := b.last.Load(); s == stepBlock && last >= 0 {
					b.last.Store(-1)
					l.breaks = nil
					l.look(s)
					b.last.Store(last)
				}
			})
		},
		"a ring that has grown takes slots for rows": func(l *looking, s step) {
			if s == stepGeneration {
				l.stream.table.ring.gen.begin = 0
			}
		},
		"epochs are raised after the row is admitted": func(l *looking, s step) {
			b := counted(l)
			switch {
			case b == nil:
			case s == stepEpochs && l.stream.table.ring.gen == b.gen:
				now := epochsOf(b)
				for i, epoch := range epochs {
					b.setEpoch(i, epoch)
				}
				epochs = now
			case s == stepClosed:
				for i, epoch := range epochs {
					b.setEpoch(i, epoch)
				}
			case s == stepHead:
				epochs = epochsOf(b)
			}
		},
		"a row is closed before series are carried forward": func(l *looking, s step) {
			if s == stepHead {
				l.stream.table.closed.Store(l.stream.table.ring.row)
			}
		},
		"a pod is selected before its series": func(l *looking, s step) {
			if sels := l.counters.selectors[0].selections.all(); s == stepSelected && len(sels) > 0 {
				columns := sels[0].columns.head.Swap(nil)
				l.breaks = nil
				l.look(s)
				sels[0].columns.head.Store(columns)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			frozen, epochs = nil, nil
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

// epochsOf returns the epochs of a block's counts.
func epochsOf(b *block) []uint64 {
	epochs := make([]uint64, b.counts)
	if all := b.epochs.Load(); all != nil {
		for i := range epochs {
			epochs[i] = (*all)[2*int(b.at)+i].Load()
		}
	}
	return epochs
}
