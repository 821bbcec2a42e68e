package aggregator

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// taken names what has been marked since the last call, in order.
func taken(s *Store, names map[*Query]string) []string {
	var found []string
	for _, m := range s.watches.take(nil, s.hook) {
		found = append(found, names[m.query.(*Query)])
	}
	slices.Sort(found)
	return found
}

func TestRowsMarkTheQueriesOfTheirSeries(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	names := map[*Query]string{}
	register := func(name, expr string) *Query {
		q, err := s.Register(expr)
		if err != nil {
			t.Fatal(err)
		}
		names[q] = name
		return q
	}
	early := newBenchPod(s, 0, 2, benchAll) // workload svc-0000
	early.commits(t, 4)                     // from the third on a row closes with its message
	own := register("own", `sum(rate(istio_requests_total{destination_workload="svc-0000"}[1m]))`)
	other := register("other", `sum(rate(istio_requests_total{destination_workload="svc-0001"}[1m]))`)
	pod := register("pod", `sum(rate(istio_requests_total{pod="svc-0000-000000"}[1m]))`)
	idle := register("idle", `sum(rate(istio_requests_total[1m]))`)
	expect := func(what string, want ...string) {
		t.Helper()
		if got := taken(s, names); !slices.Equal(got, want) {
			t.Errorf("%s: %v are marked, want %v", what, got, want)
		}
	}
	early.commits(t, 1)
	expect("nothing is watched")

	own.Watch(true)
	own.Watch(true) // once is enough
	other.Watch(true)
	pod.Watch(true)
	expect("watching alone marks nothing")
	early.commits(t, 3)
	expect("a pod of one workload", "own", "pod")

	late := newBenchPod(s, 10, 2, benchAll) // svc-0001
	late.commits(t, 4)
	expect("series that came after the query", "other")
	second := newBenchPod(s, 1, 2, benchAll)
	second.commits(t, 4)
	expect("another pod of the workload", "own")

	own.Watch(false)
	own.Close()
	early.commits(t, 1)
	late.commits(t, 1)
	expect("a query that is given up", "other", "pod")
	other.Watch(false)
	pod.Watch(false)
	early.commits(t, 1)
	late.commits(t, 1)
	expect("all are given up")
	if e := s.watches.epoch.Load(); e != 0 {
		t.Errorf("epoch is %d with nothing watched", e)
	}
	idle.Close()
}

// A query is evaluated soon after a row and at most ten times a flush interval, and never misses
// the newest row.
func TestWatchCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		q, err := s.Register(`sum(rate(istio_requests_total[1m]))`)
		if err != nil {
			t.Fatal(err)
		}
		q.Watch(true)
		const flush = 5 * time.Second
		var at []time.Time
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			s.Watch(ctx, func(*Query) time.Duration { at = append(at, time.Now()); return flush })
			close(done)
		}()
		for range 100 { // each 50 ms
			s.watches.mark(&q.mark, s.hook)
			time.Sleep(flush / 100)
			synctest.Wait()
		}
		marked := time.Now()
		s.watches.mark(&q.mark, s.hook)
		time.Sleep(flush)
		cancel()
		<-done
		for i := 1; i < len(at); i++ {
			if d := at[i].Sub(at[i-1]); d < flush/evaluationsPerFlush {
				t.Errorf("evaluations %d and %d are %s apart", i, i+1, d)
			}
		}
		if len(at) < 10 || len(at) > 12 {
			t.Errorf("%d evaluations in a flush interval and the tenth after it, want about 11", len(at))
		}
		if last := at[len(at)-1]; last.Before(marked) || last.Sub(marked) > flush/evaluationsPerFlush {
			t.Errorf("last evaluated %s after the last row", last.Sub(marked))
		}
	})
}

// Whatever other writers mark, and whenever who takes them comes, between any two steps of a mark
// and of a take: nothing is lost.
func TestNoMarkIsLostAtAnyStep(t *testing.T) {
	if lost, runs := lostMarks(t, nil); lost > 0 || runs < 100 {
		t.Errorf("%d of %d queries were not evaluated after their last row", lost, runs)
	}
	for name, breaks := range map[string]func(*Store, ring.Step){
		"a query is pushed before it knows what lies below it": func(s *Store, at ring.Step) {
			if q := s.watches.marked.Load(); at == stepMarked && q != nil {
				q.next = nil
			}
		},
		"who takes them is woken before there is one to take": func(s *Store, at ring.Step) {
			if at == stepWoken {
				select {
				case <-s.watches.wake:
				default:
				}
			}
		},
		"a query that was taken cannot be marked": func(s *Store, at ring.Step) {
			if at == stepWoken {
				for q := s.watches.marked.Load(); q != nil; q = q.next {
					s.watches.marked.CompareAndSwap(q, q.next)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if lost, _ := lostMarks(t, breaks); lost == 0 {
				t.Error("nothing is lost, so this test cannot fail")
			}
		})
	}
}

// lostMarks marks and takes three queries, has another writer mark one of them or the taker come at
// each step in turn, and counts the queries of which the last row was not seen.
func lostMarks(t *testing.T, breaks func(*Store, ring.Step)) (lost, runs int) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	var all []*Query
	for range 3 {
		q, err := s.Register(`sum(rate(istio_requests_total[1m]))`)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, q)
	}
	written, seen := map[*Query]int{}, map[*Query]int{}
	row := func(q *Query) {
		written[q]++
		s.watches.mark(&q.mark, s.hook)
	}
	woken := func() {
		select {
		case <-s.watches.wake:
			for _, m := range s.watches.take(nil, s.hook) {
				seen[m.query.(*Query)] = written[m.query.(*Query)]
			}
		default:
		}
	}
	actions := []func(at ring.Step){func(at ring.Step) {
		if at != stepUnmarked { // there is one taker
			woken()
		}
	}}
	for i := range all {
		actions = append(actions, func(ring.Step) { row(all[i]) }, func(ring.Step) { row(all[i]); row(all[(i+1)%3]) }, func(ring.Step) { row(all[i]); row(all[(i+2)%3]) })
	}
	for _, action := range actions {
		for when := range 15 {
			steps, inside := 0, false
			s.hook = func(at ring.Step) {
				if inside {
					return
				}
				inside = true
				if breaks != nil {
					breaks(s, at)
				}
				if steps == when {
					action(at)
				}
				steps++
				inside = false
			}
			for _, q := range all {
				row(q)
			}
			woken()
			row(all[1])
			row(all[0])
			woken()
			s.hook = nil
			woken()
			for _, q := range all {
				if seen[q] != written[q] {
					lost++
				}
			}
			for s.watches.marked.Load() != nil {
				s.watches.take(nil, s.hook)
			}
			for _, q := range all {
				q.next = nil
				q.marked.Store(false)
			}
			runs++
		}
	}
	return lost, runs
}

// A pod whose row comes at the moment at which a query begins to be watched marks it, then or with
// its next row.
func TestAQueryIsWatchedBeforePodsAreTold(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	pod := newBenchPod(s, 0, 2, benchAll)
	pod.commits(t, 4)
	q, err := s.Register(`sum(rate(istio_requests_total[1m]))`)
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	s.hook = func(at ring.Step) {
		if at == stepWatched {
			told++
			pod.commits(t, 1)
		}
	}
	q.Watch(true)
	s.hook = nil
	pod.commits(t, 1)
	if !slices.Contains(s.watches.take(nil, s.hook), &q.mark) || told != 1 {
		t.Error("the pod does not mark the query")
	}
}

// Streams commit while queries come, are watched and go. Run it under -race; what has to hold is
// that every query that is watched in the end is marked by the next rows of its pods.
func TestWatchConcurrentSafe(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	const pods = 8
	all := make([]*benchPod, pods)
	for i := range all {
		all[i] = newBenchPod(s, 10*i, 2, benchAll)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var evaluated atomic.Int64
	var background sync.WaitGroup
	background.Go(func() { s.Watch(ctx, func(*Query) time.Duration { evaluated.Add(1); return 0 }) })
	queries := make([]*Query, pods)
	var wg sync.WaitGroup
	for i, p := range all {
		wg.Go(func() { p.commits(t, 200) })
		wg.Go(func() {
			for round := range 20 {
				q, err := s.Register(fmt.Sprintf(`sum(rate(istio_requests_total{destination_workload="svc-%04d"}[1m]))`, i))
				if err != nil {
					t.Error(err)
					return
				}
				q.Watch(true)
				runtime.Gosched()
				if round < 19 {
					q.Watch(false)
					q.Close()
					continue
				}
				queries[i] = q
			}
		})
	}
	wg.Wait()
	cancel()
	background.Wait()
	s.watches.take(nil, s.hook)
	for _, p := range all {
		p.commits(t, 1)
	}
	marked := s.watches.take(nil, s.hook)
	for i, q := range queries {
		if !slices.Contains(marked, &q.mark) {
			t.Errorf("the query of workload %d is not marked", i)
		}
	}
}
