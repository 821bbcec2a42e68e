package ring

import (
	"fmt"
	"testing"
	"unsafe"
)

func TestEveryRowHasWordsOfItsOwn(t *testing.T) {
	for _, width := range []int{1, 4, 11, 14, 130, 300} {
		for _, slots := range []int64{1, 16, 64, 256, 1024} {
			t.Run(fmt.Sprintf("width=%d/slots=%d", width, slots), func(t *testing.T) {
				b := newBlock(newSlab(newRows(slots, 0, nil), width+5), 3, Shape{width: int16(width)})
				for row := range Row(slots) {
					b.hold(row)
					words := b.words(row)
					if len(words) != width {
						t.Fatalf("row %d has %d words", row, len(words))
					}
					for i := range words {
						words[i].Store(wordOf(row, 0) + uint64(i)<<40)
					}
				}
				for row := range Row(slots) {
					for i := range b.words(row + 3*Row(slots)) { // the slot is the same
						if got, want := b.words(row)[i].Load(), wordOf(row, 0)+uint64(i)<<40; got != want {
							t.Fatalf("row %d, word %d: %d, want %d", row, i, got, want)
						}
					}
				}
			})
		}
	}
}

// A field more in a counter's block costs every series of a mesh the next size class.
func TestABlockFillsItsSizeClass(t *testing.T) {
	if n := unsafe.Sizeof(Block{}); n > 32 {
		t.Errorf("a block takes %d bytes, want 32 at most", n)
	}
}

// Memory beyond 32 KiB comes in pages of 8 KiB.
func TestChunksOfWideRowsLoseLittleOfTheirLastPage(t *testing.T) {
	for _, rowWords := range []int{300, 330, 600, 880, 1500} { // 20, 22, 40 and 100 label sets, and 20 with sizes
		s := newSlab(newRows(64, 0, nil), rowWords)
		s.hold(0)
		bytes := 8 * len(s.chunks[0].Load().words)
		if lost := -bytes & (8<<10 - 1); 40*lost > bytes {
			t.Errorf("%d words a row: %d bytes lose %d", rowWords, bytes, lost)
		}
	}
}
