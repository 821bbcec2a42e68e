package aggregator

import (
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// scanStore is a store of one pod whose ring has few slots.
func scanStore(t *testing.T, sets int) (*Store, *benchPod, *selector) {
	t.Helper()
	return scanStoreOf(t, sets, "istio_requests_total", benchParts{counter: true})
}

func scanStoreOf(t *testing.T, sets int, metric string, parts benchParts) (*Store, *benchPod, *selector) {
	t.Helper()
	s, err := New(Config{Retention: 15 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	p := newBenchPod(s, 0, sets, parts)
	q, err := s.Register(`sum(rate(` + metric + `{reporter="destination"}[15s]))`)
	if err != nil {
		t.Fatal(err)
	}
	p.commits(t, 20)
	return s, p, q.selectors[0]
}

// readSteps returns how many columns of the batch there are, and how many whose values are not 10 a
// row apart, as the pod sends them.
func readSteps(sc *scan) (columns, wrong int) {
	for i := range sc.batch[:sc.n] {
		in := &sc.batch[i]
		for row := in.lo; row <= in.hi; row++ {
			if !isStep(in.block, row) {
				wrong++
				break
			}
		}
	}
	return sc.n, wrong
}

// isStep says whether a row is the flush's of its number: 10 requests more than the one before, of
// 800 ms in all.
func isStep(b *ring.Block, row ring.Row) bool {
	is := b.At(row)
	if b.Counts() == 0 {
		return is.Counter() == float64(10*row)
	}
	return b.Count(is, b.Counts()-1) == float64(10*row) && b.Sum(is) == float64(800*row)
}

func TestABatchThatTheWriterOvertakesIsReadAgain(t *testing.T) {
	const sets = scanBatch + 5
	s, p, sel := scanStore(t, sets)
	columns, again := 0, 0
	sc := newScan(s.index, sel, math.MinInt64, math.MaxInt64, 1)
	for begun := 1; sc.begin(); begun++ {
		if begun%3 != 0 {
			p.commits(t, 10)
		}
		n, wrong := readSteps(&sc)
		torn := sc.torn()
		if torn != (begun%3 != 0) || torn != (wrong > 0) {
			t.Fatalf("batch %d: torn %t, %d of %d columns are wrong", begun, torn, wrong, n)
		}
		if torn {
			again++
			continue
		}
		columns += n
		sc.done()
	}
	if columns != sets || again != 4 {
		t.Errorf("%d columns after %d batches read again, want %d after 4", columns, again, sets)
	}
}

func TestABatchIsOfOneGeneration(t *testing.T) {
	const sets = 10
	s, p, sel := scanStore(t, sets)
	sc := newScan(s.index, sel, math.MinInt64, math.MaxInt64, 1)
	table := p.stream.table
	move := func(columns []*column) {
		var old []*ring.Block
		for _, c := range columns {
			old = append(old, c.block.Load())
		}
		_, blocks := table.ring.Moved(2*table.ring.Slots(), old)
		for i, b := range blocks {
			columns[i].block.Store(b)
		}
	}
	for i := range 4 { // what a reader may see while a ring grows
		move(table.columns[i : i+1])
	}
	move(table.columns[4:7])
	columns, batches := 0, 0
	for ; sc.begin(); batches++ {
		for i := range sc.batch[:sc.n] {
			if sc.batch[i].block.Rows() != sc.gen {
				t.Errorf("batch %d has columns of several generations", batches)
			}
		}
		n, wrong := readSteps(&sc)
		if wrong != 0 || sc.torn() {
			t.Errorf("batch %d: %d of %d columns are wrong", batches, wrong, n)
		}
		columns += n
		sc.done()
	}
	if columns != sets || batches != 6 {
		t.Errorf("%d columns in %d batches, want %d in 6", columns, batches, sets)
	}
}

func TestScanConcurrentSafe(t *testing.T) {
	t.Run("counters", func(t *testing.T) { scanBesideAWriter(t, "istio_requests_total", benchParts{counter: true}) })
	t.Run("histograms", func(t *testing.T) {
		scanBesideAWriter(t, "istio_request_duration_milliseconds_count", benchParts{duration: true, summaries: true})
	})
}

func scanBesideAWriter(t *testing.T, metric string, parts benchParts) {
	s, p, sel := scanStoreOf(t, 40, metric, parts)
	var stop atomic.Bool
	var wrong, seen atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				for sc := newScan(s.index, sel, math.MinInt64, math.MaxInt64, 1); sc.begin(); {
					runtime.Gosched()
					n, bad := readSteps(&sc)
					if sc.torn() {
						continue
					}
					wrong.Add(int64(bad))
					seen.Add(int64(n))
					sc.done()
				}
			}
		})
	}
	for i := range 4000 {
		if i == 1000 || i == 2000 { // the ring doubles
			if _, err := s.Register(fmt.Sprintf("sum(rate(%s[%ds]))", metric, int64(i/1000+1)*s.retention/1000)); err != nil {
				t.Fatal(err)
			}
		}
		p.commits(t, 1)
		if i%8 == 0 {
			runtime.Gosched()
		}
	}
	for seen.Load() == 0 {
		runtime.Gosched()
	}
	stop.Store(true)
	wg.Wait()
	if wrong.Load() != 0 {
		t.Errorf("%d of %d columns were wrong", wrong.Load(), seen.Load())
	}
}
