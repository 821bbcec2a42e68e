package aggregator

import (
	"sync/atomic"
	"testing"
	"time"
)

// Where the process ends, a batch of millions of samples is left where it is.
func TestALargeBatchIsLeftOnceTheProcessEnds(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	st := s.Connect(Pod{Namespace: "test", Name: "web-0"})
	defer st.Close()
	b := counters(time.Now(), 1, 10_000)
	b.Stopped = new(atomic.Bool)
	b.Stopped.Store(true)
	if err := st.Commit(time.Now(), b, numbered{batch: b}); err != nil {
		t.Fatal(err)
	}
	if n := s.series.Taken(); n > 2000 {
		t.Errorf("%d series were taken", n)
	}
}
