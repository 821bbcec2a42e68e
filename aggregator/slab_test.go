package aggregator

import (
	"fmt"
	"testing"
	"time"
	"unsafe"
)

// byKey names the series of a batch by their keys.
type byKey struct{ batch *Batch }

func (d byKey) Describe(i int) (string, []Label, error) {
	return fmt.Sprint("series_", d.batch.Samples[i].Key), nil, nil
}

// A pod of which most series have gone gives their memory back, though they shared it with those
// that stay.
func TestASlabOfWhichMostIsDeadIsPacked(t *testing.T) {
	s, err := New(Config{Retention: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	st := s.Connect(Pod{Namespace: "test", Name: "pod"})
	flush := func(number, series int) {
		at := s.started.Add(time.Duration(number) * 5 * time.Second)
		b := &Batch{Timestamp: at.UnixMilli()}
		for key := range uint64(series) {
			b.Samples = append(b.Samples, Sample{Key: key + 1, Timestamp: b.Timestamp, Kind: Counter, Value: float64(100*number) + float64(key)})
		}
		if err := st.Commit(at, b, byKey{b}); err != nil {
			t.Fatal(err)
		}
	}
	const before, after = 20, 5
	for number := range 3 {
		flush(number, before)
	}
	table := st.table
	shared := slabOf(table.columns[0])
	if rowWords(table.columns[0]) != before || slabOf(table.columns[before-1]) != shared {
		t.Fatalf("%d words a row, want one slab of %d", rowWords(table.columns[0]), before)
	}
	number := 3
	for ; len(table.columns) > after && number < 20; number++ {
		flush(number, after)
	}
	st.Close()
	packed := slabOf(table.columns[0])
	live, dead := table.ring.Words()
	if len(table.columns) != after || packed == shared || rowWords(table.columns[0]) != after || live != after || dead != 0 {
		t.Fatalf("%d series in %d words a row, %d alive and %d dead; want %d in as many", len(table.columns), rowWords(table.columns[0]), live, dead, after)
	}
	for i, c := range table.columns {
		b := c.block.Load()
		_, hi, _ := b.Window(0, 1<<62)
		if got, want := b.At(hi).Counter(), float64(100*(number-1)+i); got != want {
			t.Errorf("%s: %v in the newest row, want %v", c.class.name, got, want)
		}
		if got := b.At(hi).Counter() - b.At(hi-1).Counter(); got != 100 {
			t.Errorf("%s: %v more than in the row before, want 100", c.class.name, got)
		}
	}
}

// slabOf says which columns lie together, and rowWords how many words a row of all of those has.
func slabOf(c *column) unsafe.Pointer { return *inside[unsafe.Pointer](c.block.Load(), "slab") }
func rowWords(c *column) int64        { return *inside[int64](c.block.Load(), "rowWords") }
