package aggregator

import (
	"fmt"
	"testing"
	"unsafe"
)

func TestEveryRowHasWordsOfItsOwn(t *testing.T) {
	for _, width := range []int{1, 4, 11, 14, 130, 300} {
		for _, slots := range []int{1, 16, 64, 256, 1024} {
			t.Run(fmt.Sprintf("width=%d/slots=%d", width, slots), func(t *testing.T) {
				b := newBlock(newSlab(newGeneration(slots, 0, nil), width+5), 3, shape{width: int16(width)})
				for row := range int64(slots) {
					b.hold(row)
					words := b.row(row)
					if len(words) != width {
						t.Fatalf("row %d has %d words", row, len(words))
					}
					for i := range words {
						words[i].Store(wordOf(row, 0) + uint64(i)<<40)
					}
				}
				for row := range int64(slots) {
					for i := range b.row(row + 3*int64(slots)) { // the slot is the same
						if got, want := b.row(row)[i].Load(), wordOf(row, 0)+uint64(i)<<40; got != want {
							t.Fatalf("row %d, word %d: %d, want %d", row, i, got, want)
						}
					}
				}
			})
		}
	}
}

// A field more in a column or a counter's block costs every series of a mesh the next size class.
func TestColumnsFillTheirSizeClass(t *testing.T) {
	if n := unsafe.Sizeof(column{}); n > 112 {
		t.Errorf("a column takes %d bytes, want 112 at most", n)
	}
	if n := unsafe.Sizeof(block{}); n > 32 {
		t.Errorf("a block takes %d bytes, want 32 at most", n)
	}
}
