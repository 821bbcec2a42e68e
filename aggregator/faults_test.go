package aggregator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// faulty is a store of two pods that flush every five seconds, of which one meets faults, and a
// query of both.
type faulty struct {
	t     *testing.T
	store *Store
	log   bytes.Buffer
	now   time.Time
	n     int
	pods  map[string]*Stream
	query *Query
	hook  ring.Hook
}

func newFaulty(t *testing.T) *faulty {
	f := &faulty{t: t, pods: map[string]*Stream{}}
	var err error
	if f.store, err = New(Config{Logger: slog.New(slog.NewTextHandler(&f.log, nil))}); err != nil {
		t.Fatal(err)
	}
	f.now = f.store.started
	if f.query, err = f.store.Register(`sum by (pod) (increase(istio_requests_total[30s]))`); err != nil {
		t.Fatal(err)
	}
	f.store.hook = func(at ring.Step) {
		if f.hook != nil {
			f.hook(at)
		}
	}
	for _, name := range []string{"a", "b"} {
		f.pods[name] = f.store.Connect(Pod{Namespace: "t", Name: name, Workload: "w"})
	}
	return f
}

// flush lets both pods flush: 50 requests in five seconds. It returns the error of a's message.
func (f *faulty) flush() (err error) {
	f.t.Helper()
	f.now = f.now.Add(5 * time.Second)
	f.n++
	for _, name := range []string{"b", "a"} {
		if err = f.commit(name, nil); name == "b" && err != nil {
			f.t.Fatal(err)
		}
	}
	return err
}

// commit lets a pod send its counter and another series, which d, if not nil, describes.
func (f *faulty) commit(name string, d Describer) error {
	b := counters(f.now, 1, 2)
	b.Samples[0].Value = float64(50 * f.n)
	if d == nil {
		d = numbered{batch: b}
	} else {
		b.Samples = append(b.Samples, Sample{Key: 1000, Timestamp: b.Timestamp, Kind: Counter, Value: 1})
	}
	return f.pods[name].Commit(f.now, b, d)
}

// answer is the increase that the query tells of each pod, and what it stands on.
func (f *faulty) answer() (map[string]float64, Coverage) {
	f.t.Helper()
	a, err := f.query.Eval(context.Background(), f.now)
	if err != nil {
		f.t.Fatal(err)
	}
	values := map[string]float64{}
	for _, v := range a.Values {
		values[v.Labels.Get("pod")] = v.V
	}
	return values, a.Coverage
}

// expectAside checks that nothing of pod a is answered, and that this is known.
func (f *faulty) expectAside(known time.Time) {
	f.t.Helper()
	values, c := f.answer()
	if len(values) != 1 || values["b"] == 0 {
		f.t.Errorf("%v is answered, want pod b alone", values)
	}
	if c.Reporting != 1 || c.Silent != 1 || len(c.Partial) == 0 || c.Partial[len(c.Partial)-1].Name != "a" && c.Partial[0].Name != "a" {
		f.t.Errorf("%d pods report, %d are silent, partial: %+v; want a silent and partial", c.Reporting, c.Silent, c.Partial)
	}
	if p := f.store.Pod("t", "a", f.now, 30*time.Second); p.Reporting || !p.Newest.Equal(f.store.Time(known)) {
		f.t.Errorf("the pod is told to have reported until %s: %t; want %s", p.Newest, p.Reporting, known)
	}
	if got := stored(f.t, f.store); len(got) != 1 {
		f.t.Errorf("the engine reads %v, want pod b alone", got)
	}
}

func (f *faulty) faults(part string) float64 {
	return testutil.ToFloat64(f.store.metrics.faults.WithLabelValues(part))
}

// flushes flushes so often, without a fault.
func (f *faulty) flushes(n int) {
	f.t.Helper()
	for range n {
		if err := f.flush(); err != nil {
			f.t.Fatal(err)
		}
	}
}

// panicking describes series, up to one.
type panicking struct{}

func (panicking) Describe(int) (string, []Label, error) { panic("a defect") }

func TestATableThatPanicsIsSetAsideAndRebuilt(t *testing.T) {
	f := newFaulty(t)
	f.flushes(10)
	if values, c := f.answer(); values["a"] != 300 || c.Reporting != 2 {
		t.Fatalf("%v of %d pods before the fault", values, c.Reporting)
	}
	for round := range 2 { // the second table fares the same
		f.flushes(2 - round)
		known := f.now
		f.now = f.now.Add(time.Second)
		if err := f.commit("a", panicking{}); !errors.Is(err, ErrSetAside) {
			t.Fatalf("the message that panics: %v", err)
		}
		f.expectAside(known)
		if err := f.flush(); err != nil {
			t.Fatal(err)
		}
		values, c := f.answer()
		if _, ok := values["a"]; ok || c.Reporting != 2 || len(c.Partial) != 1 || c.Partial[0].Name != "a" || c.Partial[0].GapFrom.IsZero() {
			t.Errorf("after the flush that begins anew: %v, %+v; want nothing of a, a gap in what is known of it", values, c)
		}
	}
	f.flushes(3)
	if values, _ := f.answer(); values["a"] <= 0 || values["a"] > 300 {
		t.Errorf("%v after four flushes, want what they hold of a", values)
	}
	if n := f.faults("table"); n != 2 {
		t.Errorf("%v faults are counted, want 2", n)
	}
	if text := f.log.String(); strings.Count(text, "level=ERROR") != 1 || !strings.Contains(text, "subject=t/a") || !strings.Contains(text, "panicking") {
		t.Errorf("one place in the code is logged as:\n%s", text)
	}
	if n := testutil.ToFloat64(f.store.metrics.dropped[ErrSetAside]); n != 4 {
		t.Errorf("%v samples are counted as dropped, want 4", n)
	}
}

// Wherever the writer fails between two stores, nothing of what it has left is answered, and the
// pod begins anew.
func TestAFaultAtAnyStepSetsTheTableAside(t *testing.T) {
	seen := map[ring.Step]bool{}
	for at := ring.StepClaim; at <= stepClosed; at++ {
		for occurrence := range 12 {
			f := newFaulty(t)
			n, fired := 0, false
			var known, closed time.Time
			f.hook = func(s ring.Step) {
				if s != at || fired {
					return
				}
				if t := f.pods["a"].table; t.mu.TryLock() { // it is b's
					t.mu.Unlock()
					return
				}
				if n++; n > occurrence+3 {
					fired, known = true, closed
					if s == stepClosed {
						known = f.now
					}
					panic(fmt.Sprintf("step %d", s))
				}
			}
			for range 20 {
				err := f.flush()
				if fired {
					if !errors.Is(err, ErrSetAside) {
						t.Fatalf("step %d: %v", at, err)
					}
					break
				}
				if closed = f.now; f.n < 3 { // a row stays open for another message at first
					closed = f.now.Add(-5 * time.Second)
				}
			}
			if !fired {
				continue
			}
			seen[at] = true
			if f.n > 4 {
				f.expectAside(known)
			}
			for range 8 {
				if err := f.flush(); err != nil {
					t.Fatalf("step %d: after the fault: %v", at, err)
				}
			}
			if values, c := f.answer(); values["a"] != 300 || values["b"] != 300 || c.Reporting != 2 || len(c.Partial) != 0 {
				t.Errorf("step %d: %v after eight flushes, %+v", at, values, c)
			}
		}
	}
	if len(seen) < 5 {
		t.Errorf("faults at steps %v only", seen)
	}
}

func TestATableThatCannotBeFreedHoldsUpNoOther(t *testing.T) {
	f := newFaulty(t)
	f.flushes(1)
	f.store.tables.all.all()[0].columns[0].class = nil
	f.store.sweep(t.Context(), f.store.millis(f.now.Add(time.Hour)))
	if n := len(f.store.tables.all.all()); n != 0 {
		t.Errorf("%d tables are left", n)
	}
	if f.faults("table") != 1 {
		t.Error("the fault is not counted")
	}
	f.now = f.now.Add(time.Hour)
	f.flushes(8)
	if values, c := f.answer(); values["a"] != 300 || values["b"] != 300 || c.Reporting != 2 || c.Silent != 0 {
		t.Errorf("%v of %d pods, %d silent, after both have come back", values, c.Reporting, c.Silent)
	}
}

// A row that no message follows is closed by a timer, whose goroutine is nobody's.
func TestAFaultOfARowThatIsClosedLateIsContained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty(t)
		f.flushes(1)
		table := f.pods["a"].table
		table.mu.Lock()
		table.pending = []pendingCounter{{}}
		table.mu.Unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		if f.faults("table") != 1 || table.aside.Load() == nil {
			t.Error("the table is not set aside")
		}
		f.pods["a"].Close()
		f.pods["b"].Close()
	})
}

// brokenPlan is an expression that cannot be evaluated.
type brokenPlan struct{}

func (brokenPlan) eval(*Store, int64) ([]Value, bool) { panic("a defect") }

func TestAQueryThatPanicsIsSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty(t)
		other, err := f.store.Register(`sum(rate(istio_requests_total[1m]))`)
		if err != nil {
			t.Fatal(err)
		}
		f.flushes(20)
		right := f.query.plan
		f.query.plan = brokenPlan{}
		for range 3 {
			if a, err := f.query.Eval(context.Background(), f.now); err == nil || !strings.Contains(err.Error(), "set aside after a fault") || len(a.Values) > 0 {
				t.Errorf("a query that panics answers %v, %v", a.Values, err)
			}
		}
		if f.faults("query") != 1 || strings.Count(f.log.String(), "level=ERROR") != 1 {
			t.Errorf("%v faults; log:\n%s", f.faults("query"), f.log.String())
		}
		if _, err := other.Eval(context.Background(), f.now); err != nil {
			t.Errorf("another query: %v", err)
		}
		f.query.plan = right
		if _, err := f.query.Eval(context.Background(), f.now); err == nil {
			t.Error("the query answers at once")
		}
		time.Sleep(faultPause)
		if values, _ := f.answer(); values["a"] != 300 {
			t.Errorf("%v after the pause", values)
		}
		for _, st := range f.pods {
			st.Close()
		}
	})
}

// What runs in the background goes on after a fault of one detector, which begins anew after a
// pause.
func TestADetectorThatPanicsSetsItsQueryAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty(t)
		var detectors []*SurgeDetector
		for range 2 {
			q, err := f.store.Register(`sum(rate(istio_requests_total[1m]))`)
			if err != nil {
				t.Fatal(err)
			}
			d, err := q.DetectSurges(SurgeConfig{})
			if err != nil {
				t.Fatal(err)
			}
			detectors = append(detectors, d)
		}
		f.flushes(20)
		detectors[0].rules = nil
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go f.store.Run(ctx)
		time.Sleep(31 * time.Second) // a sweep is each tenth of the retention
		if n := f.faults("query"); n != 1 {
			t.Fatalf("%v faults are counted, want 1", n)
		}
		at := f.store.started.Add(100 * time.Second)
		if s := detectors[1].At(at); !s.Ready {
			t.Errorf("the other detector: %+v", s)
		}
		if _, err := detectors[0].query.Eval(ctx, at); err == nil || detectors[0].At(at).Ready {
			t.Errorf("its query answers: %v", err)
		}
		time.Sleep(faultPause)
		if _, err := detectors[0].query.Eval(ctx, at); err != nil || !detectors[0].At(at).Ready {
			t.Errorf("after the pause: %v, %+v", err, detectors[0].At(at))
		}
		cancel()
		for _, st := range f.pods {
			st.Close()
		}
	})
}

func TestAnEvaluationThatPanicsHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty(t)
		other, err := f.store.Register(`sum(rate(istio_requests_total[1m]))`)
		if err != nil {
			t.Fatal(err)
		}
		evaluated := map[*Query]int{}
		ctx, cancel := context.WithCancel(t.Context())
		go f.store.Watch(ctx, func(q *Query) time.Duration {
			if evaluated[q]++; q == f.query {
				panic("a defect")
			}
			return 0
		})
		for range 3 {
			f.query.Mark()
			other.Mark()
			time.Sleep(time.Second)
			synctest.Wait()
		}
		cancel()
		synctest.Wait()
		if evaluated[f.query] != 3 || evaluated[other] != 3 || f.faults("act") != 3 {
			t.Errorf("evaluated %d and %d times, %v faults; want 3 each", evaluated[f.query], evaluated[other], f.faults("act"))
		}
		for _, st := range f.pods {
			st.Close()
		}
	})
}

func TestAClosedQueryAnswersAnError(t *testing.T) {
	f := newFaulty(t)
	f.flushes(1)
	adHoc, err := f.store.Query(`count(istio_requests_total)`)
	if err != nil {
		t.Fatal(err)
	}
	adHoc.Close() // has prepared nothing
	if _, err := adHoc.Eval(context.Background(), f.now); err != nil {
		t.Error(err)
	}
	f.query.Close()
	f.flushes(1)
	if a, err := f.query.Eval(context.Background(), f.now); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("a closed query answers %v, %v", a.Values, err)
	}
}

// A defect in what the engine reads sets that query aside, and its turn ends: no other waits for
// it.
func TestAnEngineQueryThatPanicsHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty(t)
		f.store.engine.turns = newTurns(1)
		for range 20 {
			if err := f.flush(); err != nil {
				t.Fatal(err)
			}
		}
		faulty, err := f.store.RegisterFor("theirs", `sum(istio_requests_total offset 1s)`)
		if err != nil {
			t.Fatal(err)
		}
		faulty.store = &Store{store: f.store.store, engine: f.store.engine} // without an index
		if _, err := faulty.Eval(t.Context(), f.now); err == nil || !strings.Contains(f.log.String(), "panic") {
			t.Fatalf("%v: the query met no fault: %s", err, f.log.String())
		}
		good, err := f.store.RegisterFor("mine", `sum(istio_requests_total offset 2s)`)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if answer, err := good.Eval(ctx, f.now); err != nil || len(answer.Values) != 1 {
			t.Errorf("another namespace's query: %v, %v", answer.Values, err)
		}
		for _, stream := range f.pods {
			stream.Close()
		}
	})
}

// An alert on the first fault, or the first evaluation that fails, needs what was there before it.
func TestFaultsAndEvaluationsAreCountedFromZero(t *testing.T) {
	registry := prometheus.NewRegistry()
	if _, err := New(Config{Registerer: registry}); err != nil {
		t.Fatal(err)
	}
	text := "# HELP meshpulse_faults_total Panics that were contained, by the part that they were in.\n# TYPE meshpulse_faults_total counter\n"
	for _, part := range faultParts {
		text += fmt.Sprintf("meshpulse_faults_total{part=%q} 0\n", part)
	}
	text += "# HELP meshpulse_query_evaluations_total Evaluated expressions by outcome.\n# TYPE meshpulse_query_evaluations_total counter\n" +
		"meshpulse_query_evaluations_total{outcome=\"error\"} 0\nmeshpulse_query_evaluations_total{outcome=\"ok\"} 0\n"
	if err := testutil.GatherAndCompare(registry, strings.NewReader(text), "meshpulse_faults_total", "meshpulse_query_evaluations_total"); err != nil {
		t.Error(err)
	}
}

// TestEveryPartThatContainsFaultsIsKnown reads the sources: parts are named where they are, in
// several packages.
func TestEveryPartThatContainsFaultsIsKnown(t *testing.T) {
	named := map[string]bool{}
	part := regexp.MustCompile(`(?:ontain|ontain\.run|\.fault)\("(\w+)"`)
	for _, folder := range []string{".", "../envoystats", "../metricsapi"} {
		if err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			for _, match := range part.FindAllSubmatch(source, -1) {
				named[string(match[1])] = true
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if got := slices.Sorted(maps.Keys(named)); !slices.Equal(got, faultParts) {
		t.Errorf("the sources name %q, counted from 0 are %q", got, faultParts)
	}
}
