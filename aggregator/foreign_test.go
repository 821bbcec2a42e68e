package aggregator

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// census is a cluster whose pods come and go.
type census struct {
	addressBook
	mu     sync.Mutex
	exist  map[string]bool
	left   map[string]time.Time
	unsure bool                   // not in step
	denies func(name string) bool // what the API server says when it is asked, nil: nothing
	asked  []string
}

func (c *census) Denies(namespace, name string) bool {
	c.mu.Lock()
	c.asked = append(c.asked, namespace+"/"+name)
	denies := c.denies
	c.mu.Unlock()
	return denies != nil && denies(name)
}

func (c *census) Known(namespace, name string) (Pod, time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := namespace + "/" + name
	return Pod{}, time.UnixMilli(0), c.exist[key] || !c.left[key].IsZero()
}

func (c *census) Exists(namespace, name string) (bool, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := namespace + "/" + name
	if c.exist[key] {
		return true, time.Time{}
	}
	return false, c.left[key]
}

func (c *census) InStep() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.unsure
}

// set is news of a pod, or with an empty name of whether what is known is in step.
func (c *census) set(name string, is bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case name == "":
		c.unsure = !is
	case is:
		c.exist[name] = true
	default:
		delete(c.exist, name)
		c.left[name] = time.Now()
	}
}

// reports is a store in a cluster, and streams that flush every 5 s.
type reports struct {
	*testing.T
	store  *Store
	census *census
	began  time.Time
}

// inCluster runs a test with a store in a cluster that knows test/known, and a clock of its own.
func inCluster(t *testing.T, c Config, do func(r *reports)) {
	synctest.Test(t, func(t *testing.T) {
		r := &reports{T: t, census: &census{exist: map[string]bool{"test/known": true}, left: map[string]time.Time{}}, began: time.Now()}
		var err error
		if r.store, err = New(c); err != nil {
			t.Fatal(err)
		}
		r.store.SetPods(r.census)
		go r.store.Run(t.Context())
		time.Sleep(2500 * time.Millisecond) // nothing is at the instant of a look, which is a second's
		do(r)
	})
}

// until flushes as a pod until a time since the beginning, and says when it was refused first, 0 if
// it never was.
func (r *reports) until(st *Stream, end time.Duration) (refused time.Duration) {
	r.Helper()
	for time.Since(r.began) < end {
		time.Sleep(5 * time.Second)
		switch err := r.flush(st); {
		case err == nil:
		case !errors.Is(err, ErrForeignPod):
			r.Fatal(err)
		case refused == 0:
			refused = time.Since(r.began)
		}
	}
	return refused
}

func (r *reports) flush(st *Stream) error {
	now := time.Now()
	b := &Batch{Timestamp: now.UnixMilli(), Samples: []Sample{{Key: 1, Timestamp: now.UnixMilli(), Kind: Counter, Value: now.Sub(r.began).Seconds()}}}
	err := st.Commit(now, b, podinfoRequests{})
	synctest.Wait()
	return err
}

// counted is how many pods' series count.
func (r *reports) counted() int {
	r.Helper()
	q, err := r.store.Query(`istio_requests_total`)
	if err != nil {
		r.Fatal(err)
	}
	a, err := q.Eval(r.Context(), time.Now())
	if err != nil {
		r.Fatal(err)
	}
	return a.Matched
}

func pod(name, sender string) Pod {
	return Pod{Namespace: "test", Name: name, Workload: "podinfo", Sender: sender, FlushInterval: 5 * time.Second}
}

func TestAPodThatTheClusterNeverKnewIsNotCounted(t *testing.T) {
	for name, tc := range map[string]struct {
		config  Config
		pod     string
		news    map[time.Duration]string // a pod comes, - goes; alone: what is known is in step, or not
		refused time.Duration
		counted int // at two minutes
	}{
		"a pod that exists":             {pod: "known", counted: 1},
		"one that nobody knows":         {pod: "phantom", refused: 42500 * time.Millisecond},
		"it is known after 30 s":        {pod: "late", news: map[time.Duration]string{30 * time.Second: "test/late"}, counted: 1},
		"it is known after a minute":    {pod: "late", news: map[time.Duration]string{62 * time.Second: "test/late"}, refused: 42500 * time.Millisecond, counted: 1},
		"what is known is not in step":  {pod: "phantom", news: map[time.Duration]string{0: "-"}, counted: 1},
		"it is in step after a minute":  {pod: "phantom", news: map[time.Duration]string{0: "-", time.Minute: ""}, refused: 72500 * time.Millisecond},
		"its step is broken":            {pod: "phantom", news: map[time.Duration]string{26 * time.Second: "-", 27 * time.Second: "", 34 * time.Second: "-", 36 * time.Second: ""}, refused: 47500 * time.Millisecond},
		"all are to be counted":         {config: Config{CountForeign: true}, pod: "phantom", counted: 1},
		"a pod that leaves":             {pod: "known", news: map[time.Duration]string{30 * time.Second: "-test/known"}, refused: 62500 * time.Millisecond, counted: 1},
		"a pod that leaves, and others": {config: Config{CountForeign: true}, pod: "known", news: map[time.Duration]string{30 * time.Second: "-test/known"}, counted: 1},
		"its name is used again":        {pod: "known", news: map[time.Duration]string{30 * time.Second: "-test/known", 50 * time.Second: "test/known"}, counted: 1},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, tc.config, func(r *reports) {
				for at, who := range tc.news {
					gone, is := strings.CutPrefix(who, "-")
					if at == 0 {
						r.census.set(gone, !is)
						continue
					}
					time.AfterFunc(at-2100*time.Millisecond, func() { r.census.set(gone, !is) })
				}
				st := r.store.Connect(pod(tc.pod, "10.0.0.9"))
				if refused := r.until(st, 2*time.Minute); refused != tc.refused {
					t.Errorf("refused at %s, want %s", refused, tc.refused)
				}
				if n := r.counted(); n != tc.counted {
					t.Errorf("%d series count, want %d", n, tc.counted)
				}
				st.Close()
			})
		})
	}
}

// A pod that came and went while the API server told nothing may have existed: what it has sent
// stays until it has left the window.
func TestAPodThatWentBeforeItCouldBeKnownStays(t *testing.T) {
	inCluster(t, Config{}, func(r *reports) {
		r.census.set("", false)
		st := r.store.Connect(pod("gone", "10.0.0.9"))
		r.until(st, 45*time.Second)
		st.Close()
		r.census.set("", true)
		time.Sleep(time.Minute)
		if n := r.counted(); n != 1 {
			t.Errorf("%d series count, want 1", n)
		}
	})
}

// Names cost nothing. So a sender has its half a minute once, and a pod that has left long ago
// none; those of others do.
func TestASenderOfPhantomsHasNoMoreTime(t *testing.T) {
	inCluster(t, Config{}, func(r *reports) {
		r.until(r.store.Connect(pod("phantom-0", "10.0.0.9")), 47*time.Second)
		for n := range 20 {
			st := r.store.Connect(pod(fmt.Sprintf("phantom-%d", n+1), "10.0.0.9"))
			if err := r.flush(st); !errors.Is(err, ErrForeignPod) {
				t.Errorf("another name of the same sender: %v", err)
			}
		}
		if n := r.counted(); n != 0 {
			t.Errorf("%d series count", n)
		}
		if err := r.flush(r.store.Connect(pod("young", "10.0.0.8"))); err != nil {
			t.Errorf("another sender: %v", err)
		}
		if err := r.flush(r.store.Connect(pod("known", "10.0.0.9"))); err != nil {
			t.Errorf("a pod that exists: %v", err)
		}
		st := r.store.Connect(pod("phantom-1", "10.0.0.9"))
		if r.census.set("test/phantom-1", true); r.flush(st) != nil {
			t.Error("it is known by now, and refused")
		}
		r.census.set("test/gone", false)
		if err := r.flush(r.store.Connect(pod("gone", "10.0.0.7"))); err != nil {
			t.Errorf("a pod that has just left: %v", err)
		}
		r.census.set("test/long-gone", false)
		time.Sleep(31 * time.Second)
		if err := r.flush(r.store.Connect(pod("long-gone", "10.0.0.6"))); !errors.Is(err, ErrForeignPod) {
			t.Errorf("a pod that has left long ago: %v", err)
		}
		if dropped := testutil.ToFloat64(r.store.metrics.dropped[ErrForeignPod]); dropped < 22 {
			t.Errorf("%v samples are counted as dropped", dropped)
		}
	})
}

// What the informer does not know may be on its way: the API server itself is asked, and what it
// denies does not count for a moment.
func TestAPodThatTheAPIServerDeniesNeverCounts(t *testing.T) {
	inCluster(t, Config{}, func(r *reports) {
		r.census.denies = func(name string) bool { return strings.HasPrefix(name, "phantom") }
		st := r.store.Connect(pod("phantom-0", "10.0.0.9"))
		for range 3 {
			if err := r.flush(st); !errors.Is(err, ErrForeignPod) {
				t.Errorf("a pod that it denies: %v", err)
			}
		}
		time.Sleep(time.Second)
		for n := range 20 {
			if err := r.flush(r.store.Connect(pod(fmt.Sprintf("phantom-%d", n+1), "10.0.0.9"))); !errors.Is(err, ErrForeignPod) {
				t.Errorf("another name of its sender: %v", err)
			}
		}
		late, known := r.store.Connect(pod("late", "10.0.0.8")), r.store.Connect(pod("known", "10.0.0.7"))
		for range 2 {
			if err := r.flush(late); err != nil {
				t.Errorf("a pod that the informer does not know yet: %v", err)
			}
			if err := r.flush(known); err != nil {
				t.Errorf("a pod that it knows: %v", err)
			}
			time.Sleep(5 * time.Second)
		}
		if got := strings.Join(r.census.asked, " "); got != "test/phantom-0 test/late" {
			t.Errorf("asked for %s", got)
		}
		if n := r.counted(); n != 2 {
			t.Errorf("%d series count, want 2", n)
		}
		q, err := r.store.Query(`istio_requests_total{reporter="destination",destination_workload="podinfo"}`)
		if err != nil {
			t.Fatal(err)
		}
		if got := q.Foreign(time.Now()); got != "test/phantom-0" {
			t.Errorf("told of %q", got)
		}
		r.census.set("test/phantom-0", true)
		if err := r.flush(st); err != nil {
			t.Errorf("it is known by now: %v", err)
		}
	})
}

func TestTheAPIServerIsNotAskedInVain(t *testing.T) {
	for name, tc := range map[string]struct {
		config Config
		before func(r *reports)
	}{
		"all are to be counted":        {Config{CountForeign: true}, func(*reports) {}},
		"what is known is not in step": {Config{}, func(r *reports) { r.census.set("", false) }},
		"it has just left":             {Config{}, func(r *reports) { r.census.set("test/phantom", false) }},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, tc.config, func(r *reports) {
				r.census.denies = func(string) bool { return true }
				tc.before(r)
				if err := r.flush(r.store.Connect(pod("phantom", "10.0.0.9"))); err != nil || r.census.asked != nil {
					t.Errorf("asked for %v: %v", r.census.asked, err)
				}
			})
		})
	}
}

// However many names come at once, few are asked for at a time, those that wait are not asked for
// once their sender is caught, and where no answer comes they have their half a minute.
func TestFewPodsAreAskedForAtATime(t *testing.T) {
	for name, answers := range map[string]bool{"the API server answers": true, "it does not": false} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, Config{}, func(r *reports) {
				answer := make(chan struct{})
				r.census.denies = func(string) bool { <-answer; return true }
				errs := make([]error, 50)
				var all sync.WaitGroup
				for n := range errs {
					all.Go(func() {
						st := &Stream{store: r.store.store, pod: &Pod{Namespace: "test", Name: fmt.Sprint("phantom-", n), Sender: "10.0.0.9"}}
						t, err := st.lock()
						if errs[n] = err; err == nil {
							t.mu.Unlock()
						}
					})
				}
				synctest.Wait()
				if !answers {
					time.Sleep(askingFor)
				}
				close(answer)
				all.Wait()
				refused := 0
				for _, err := range errs {
					if errors.Is(err, ErrForeignPod) {
						refused++
					}
				}
				want := len(errs)
				if !answers {
					want = maxAsking
				}
				if len(r.census.asked) != maxAsking || refused != want {
					t.Errorf("%d were asked for, want %d; %d refused, want %d", len(r.census.asked), maxAsking, refused, want)
				}
			})
		})
	}
}

// Who looks for what a query counts is told which pods it does not: those that say that they are of
// it.
func TestForeignPodsAreTold(t *testing.T) {
	inCluster(t, Config{}, func(r *reports) {
		r.until(r.store.Connect(pod("phantom", "10.0.0.9")), 47*time.Second)
		for expr, want := range map[string]string{
			`sum(rate(istio_requests_total{reporter="destination",destination_workload="podinfo"}[1m]))`: "test/phantom",
			`sum(rate(istio_requests_total{reporter="destination",destination_workload="other"}[1m]))`:   "",
		} {
			q, err := r.store.Query(expr)
			if err != nil {
				t.Fatal(err)
			}
			if got := q.Foreign(time.Now()); got != want {
				t.Errorf("%s: told of %q, want %q", expr, got, want)
			}
		}
		if n := testutil.ToFloat64(r.store.metrics.foreign); n != 1 {
			t.Errorf("%v pods are counted", n)
		}
		for n := range 2 * maxForeign {
			r.store.foreign.caught(&Pod{Namespace: "test", Name: fmt.Sprint("p-", n)}, r.store.millis(time.Now()))
		}
		if n := len(r.store.foreign.named.pods); n != maxForeign {
			t.Errorf("%d are remembered", n)
		}
	})
}

// A pod whose name is used again after more than half a minute is a pod that exists: nothing of it
// is refused.
func TestAPodThatIsBackIsNotRefused(t *testing.T) {
	for name, deaf := range map[string]bool{"in step": false, "the watch ends as it comes": true} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, Config{}, func(r *reports) {
				st := r.store.Connect(pod("known", "10.0.0.9"))
				r.until(st, 20*time.Second)
				st.Close()
				r.census.set("test/known", false)
				time.Sleep(61 * time.Second) // the next one of a StatefulSet waits for its volume
				r.census.set("test/known", true)
				if deaf {
					r.census.set("", false)
				}
				st = r.store.Connect(pod("known", "10.0.0.10"))
				refused := 0
				for range 12 {
					if r.flush(st) != nil {
						refused++
					}
					time.Sleep(5 * time.Second)
				}
				if refused > 0 {
					t.Errorf("%d of its first 12 flushes were refused though the cluster knows it", refused)
				}
			})
		})
	}
}

// A waypoint that is known late has its requests counted once.
func TestAWaypointThatIsKnownLateIsCountedOnce(t *testing.T) {
	for name, space := range map[string]uint64{"tags": 0, "in a space": 7} {
		t.Run(name, func(t *testing.T) {
			r := newRivalry(t)
			c := &addressBook{clusterOf: clusterOf{"test/web-0": {}}}
			r.store.SetPods(c)
			st := r.store.Connect(Pod{Namespace: "test", Name: "late", FlushInterval: 5 * time.Second})
			for n := range 24 {
				if n == 6 {
					c.clusterOf["test/late"] = Pod{Waypoint: true}
					c.changes++
				}
				arrival := r.store.started.Add(time.Duration(n+1) * 5 * time.Second)
				b := &Batch{Timestamp: arrival.UnixMilli(), Space: space}
				for i := range 2 {
					b.Samples = append(b.Samples, Sample{Key: uint64(i + 1), Timestamp: b.Timestamp, Kind: Counter, Value: float64((n + 1) * 500)})
				}
				if err := st.Commit(arrival, b, waypointRequests{}); err != nil {
					t.Fatal(err)
				}
			}
			for _, sel := range []string{`reporter="waypoint"`, `reporter="destination"`} {
				q, err := r.store.Query(`sum(rate(istio_requests_total{pod="late",` + sel + `}[30s]))`)
				if err != nil {
					t.Fatal(err)
				}
				a, err := q.Eval(t.Context(), r.store.started.Add(120*time.Second))
				if err != nil {
					t.Fatal(err)
				}
				t.Log(sel, a.Values)
				for _, v := range a.Values {
					if v.V > 105 || v.V < 95 {
						t.Errorf("%s: %v requests a second, there were 100", sel, v.V)
					}
				}
			}
		})
	}
}
