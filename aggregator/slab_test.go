package aggregator

import (
	"fmt"
	"testing"
	"time"
)

// byKey names the series of a batch by their keys.
type byKey struct{ batch *Batch }

func (d byKey) Describe(i int) (string, []Label, error) {
	return fmt.Sprint("series_", d.batch.Samples[i].Key), nil, nil
}

// A pod of which most series have gone gives their memory back, though they shared it with those that stay.
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
	shared := table.columns[0].block.Load().slab
	if shared.rowWords != before || table.columns[before-1].block.Load().slab != shared {
		t.Fatalf("%d words a row, want one slab of %d", shared.rowWords, before)
	}
	number := 3
	for ; len(table.columns) > after && number < 20; number++ {
		flush(number, after)
	}
	st.Close()
	packed := table.columns[0].block.Load().slab
	if len(table.columns) != after || packed == shared || packed.rowWords != after || table.live != after || table.dead != 0 {
		t.Fatalf("%d series in %d words a row, %d alive and %d dead; want %d in as many", len(table.columns), packed.rowWords, table.live, table.dead, after)
	}
	for i, c := range table.columns {
		b := c.block.Load()
		_, hi, _ := b.window(0, 1<<62)
		if got, want := valueIn(b.row(hi)), float64(100*(number-1)+i); got != want {
			t.Errorf("%s: %v in the newest row, want %v", c.class.name, got, want)
		}
		if got := valueIn(b.row(hi)) - valueIn(b.row(hi-1)); got != 100 {
			t.Errorf("%s: %v more than in the row before, want 100", c.class.name, got)
		}
	}
}
