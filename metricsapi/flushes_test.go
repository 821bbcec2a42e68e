package metricsapi

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// flusher is a sidecar that serves 10 requests a second of 100 ms each, from a time on, and flushes
// as it does.
type flusher struct {
	name               string
	born               time.Duration // when its first requests come; it may be before the store's start
	every, phase, told time.Duration
	late               time.Duration // until then what it sends is held up
	stepAt, step       time.Duration // from then on its clock is off by so much
	without            bool          // it sends no histograms
	stream             *aggregator.Stream
	sent               int
	messages           []flushed
}

type flushed struct {
	arrival time.Duration
	batch   *aggregator.Batch
}

// served is how many requests it has served until a time.
func (f *flusher) served(at time.Duration) float64 {
	return math.Floor(10 * max(0, at-f.born).Seconds())
}

func (f *flusher) prepare(started time.Time, until time.Duration) {
	for at := f.phase; at <= until; at += f.every {
		clock := started.Add(at)
		if f.step != 0 && at >= f.stepAt {
			clock = clock.Add(f.step)
		}
		b := &aggregator.Batch{Timestamp: clock.UnixMilli()}
		b.Samples = append(b.Samples, aggregator.Sample{Key: 1, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: f.served(at)})
		if n := f.served(at) - f.served(at-f.every); !f.without {
			b.Samples = append(b.Samples, aggregator.Sample{Key: 2, Timestamp: b.Timestamp, Kind: aggregator.Histogram, Count: uint64(n), Value: 100 * n})
		}
		f.messages = append(f.messages, flushed{max(at, f.late), b})
	}
}

// deliver commits what has arrived until a time.
func (f *flusher) deliver(t *testing.T, s *aggregator.Store, until time.Duration) {
	t.Helper()
	for ; f.sent < len(f.messages) && f.messages[f.sent].arrival <= until; f.sent++ {
		if f.stream == nil {
			f.stream = s.Connect(aggregator.Pod{Namespace: "test", Name: f.name, Workload: "podinfo", FlushInterval: f.told})
		}
		m := f.messages[f.sent]
		if err := f.stream.Commit(s.Started().Add(m.arrival), m.batch, requestLabels{}); err != nil {
			t.Fatal(err)
		}
	}
}

// watched is how far answers were from the truth: the largest and smallest part of it of those that
// were not held, and how many were.
type watched struct {
	most, least      float64
	mostAt, leastAt  time.Duration
	free, held, none int
	surges           int
}

// askOn lets sidecars flush and asks every second, as an HPA would.
func askOn(t *testing.T, expr string, truth float64, alone, known bool, until time.Duration, flushers ...*flusher) watched {
	t.Helper()
	store, err := aggregator.New(aggregator.Config{Retention: 6 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	exist := fixedPods{}
	for _, f := range flushers {
		f.prepare(store.Started(), until)
		exist = append(exist, cluster.Pod{Identity: aggregator.Pod{Namespace: "test", Name: f.name, Workload: "podinfo"}, Wired: true, Created: store.Started().Add(f.born)})
	}
	p := register(store, preparedKey{namespace: "test", expr: expr, surge: aggregator.SurgeConfig{}.WithDefaults()})
	hpas := []*hpas.Wants{asking("podinfo", "AverageValue", "10000", 2)}
	o := &offer{offerKey: offerKey{namespace: "test", metric: "rps"}, prepared: p, owner: hpas[0], askers: hpas}
	r := rules{retention: 6 * time.Minute, started: store.Started()}
	if !alone {
		r.holder = &holder{pods: exist, scales: fixedScale(4), store: store, started: store.Started(), hold: 5 * time.Minute}
	}
	if known {
		store.SetPods(created(exist))
	}
	w := watched{least: math.Inf(1)}
	for at := 500 * time.Millisecond; at <= until; at += time.Second {
		for _, f := range flushers {
			f.deliver(t, store, at)
		}
		now := store.Started().Add(at)
		seen, _, refused := r.see(context.Background(), "metric rps", p, now)
		if refused == nil { // what may ask for more, held or not
			if part := float64(seen.sum()) / 1000 / truth; part > w.most {
				w.most, w.mostAt = part, at
			}
			if seen.surge != nil {
				w.surges++
			}
		}
		v, _, refused := r.evaluate(context.Background(), "metric rps", o, p, now)
		switch {
		case refused != nil:
			w.none++
		case v.held:
			w.held++
		default:
			w.free++
			if part := float64(v.sum()) / 1000 / truth; part < w.least {
				w.least, w.leastAt = part, at
			}
		}
	}
	return w
}

// created tells the store which pods there are.
type created fixedPods

func (c created) Known(namespace, name string) (aggregator.Pod, time.Time, bool) {
	p, ok := fixedPods(c).Get(namespace, name)
	return p.Identity, p.Created, ok
}

func (created) Fresh() bool  { return true }
func (created) InStep() bool { return true }

func (created) Holder(string, string, netip.Addr) (own bool, other string) { return false, "" }

func (created) Changes() uint64 { return 0 }

func (created) Denies(string, string) bool { return false }

func (created) ServiceAccount(string, string) (string, time.Time) { return "", time.Time{} }

func (c created) Exists(namespace, name string) (exists bool, left time.Time) {
	p, ok := fixedPods(c).Get(namespace, name)
	return ok && p.Left.IsZero(), p.Left
}

// However often sidecars flush, and whatever they tell of it, from the first flush on no answer is
// more than 1.10 times the truth, and none that is lower stands.
func TestNoFlushIntervalMultipliesAnAnswer(t *testing.T) {
	const labels = `{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}`
	exprs := map[string]float64{ // and the truth of one sidecar
		"sum(rate(istio_requests_total" + labels + "[1m]))":                           10,
		"sum(rate(istio_requests_total" + labels + "[2m]))":                           10,
		"sum(rate(istio_requests_total" + labels + "[5m]))":                           10,
		"sum(rate(istio_request_duration_milliseconds_sum" + labels + "[2m])) / 1000": 1,
		"sum(increase(istio_requests_total" + labels + "[3m]))":                       1800,
	}
	tell := map[string]func(every time.Duration) time.Duration{
		"untold": func(time.Duration) time.Duration { return 0 },
		"told":   func(every time.Duration) time.Duration { return every },
	}
	for _, false := range []time.Duration{time.Minute, 5 * time.Minute, 30 * time.Second, time.Second, 250 * time.Millisecond} {
		tell["told "+false.String()] = func(time.Duration) time.Duration { return false }
	}
	for expr, truth := range exprs {
		for how, told := range tell {
			for _, seconds := range []int{1, 2, 5, 10, 15, 20, 30, 45, 60, 70, 100} {
				every := time.Duration(seconds) * time.Second
				if strings.HasPrefix(how, "told ") && seconds != 5 {
					continue
				}
				for _, alone := range []bool{true, false} {
					var fs []*flusher
					for i := range 3 {
						fs = append(fs, &flusher{name: fmt.Sprint("pod-", i), born: -time.Hour, every: every, phase: 3*time.Second + time.Duration(i)*every*3/10, told: told(every)})
					}
					w := askOn(t, expr, 3*truth, alone, !alone, 6*time.Minute, fs...)
					report(t, fmt.Sprintf("%s, every %s %s, alone %v", expr, every, how, alone), w, alone)
				}
			}
		}
	}
}

// report says what is wrong with what was watched.
func report(t *testing.T, what string, w watched, alone bool) {
	t.Helper()
	if w.most > 1.10 {
		t.Errorf("%s: %.3f of the truth at %s", what, w.most, w.mostAt)
	}
	if !alone && w.least < 0.90 {
		t.Errorf("%s: %.3f of the truth at %s, and not held", what, w.least, w.leastAt)
	}
	if w.surges > 0 {
		t.Errorf("%s: %d answers of a surge under constant load", what, w.surges)
	}
	if w.free == 0 && w.held == 0 && w.none == 0 {
		t.Errorf("%s: nothing was asked", what)
	}
}

const flushed1m = `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`

// A sidecar's clock that is set by less than a flush moves no answer: not the next flush, and not
// those of the minutes after.
func TestAClockThatIsSetMovesNoAnswer(t *testing.T) {
	irate := strings.Replace(flushed1m, "rate(", "irate(", 1)
	for _, every := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second} {
		for _, part := range []float64{-0.98, -0.6, -0.3, -0.15, 0.15, 0.3, 0.6, 0.98} {
			for _, after := range []int{0, 1, 2, 3, 20} { // flushes
				step := time.Duration(part * float64(every))
				sidecars := func() []*flusher {
					return []*flusher{{name: "a", born: -time.Hour, every: every, phase: 3 * time.Second, stepAt: time.Second + time.Duration(after)*every + 3*time.Second, step: step}}
				}
				what := fmt.Sprintf("every %s, set by %s after %d flushes", every, step, after)
				report(t, what, askOn(t, flushed1m, 10, false, true, 6*time.Minute, sidecars()...), false)
				if after == 20 {
					report(t, what+", irate", askOn(t, irate, 10, false, true, 6*time.Minute, sidecars()...), false)
				}
			}
		}
	}
}

// First flushes that come late, all at once, when whoever should have taken them was held up.
func TestLateFirstFlushesMoveNoAnswer(t *testing.T) {
	for _, every := range []time.Duration{time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second} {
		for _, late := range []time.Duration{4 * time.Second, 12 * time.Second, 43 * time.Second, 90 * time.Second} {
			for _, told := range []time.Duration{0, every} {
				f := &flusher{name: "a", born: -time.Hour, every: every, phase: 3 * time.Second, late: late, told: told}
				report(t, fmt.Sprintf("every %s, told %s, held up for %s", every, told, late), askOn(t, flushed1m, 10, false, true, 6*time.Minute, f), false)
			}
		}
	}
}

// A pod of a known workload that takes half of the load and tells nothing of its interval, or
// flushes far more seldom than the others.
func TestANewPodsFirstFlushIsNoSurge(t *testing.T) {
	for _, every := range []time.Duration{time.Second, 5 * time.Second, 15 * time.Second, 30 * time.Second, time.Minute, 100 * time.Second} {
		for _, without := range []bool{false, true} {
			first := &flusher{name: "a", born: -time.Hour, every: 5 * time.Second, phase: 3 * time.Second, without: without}
			second := &flusher{name: "b", born: 5 * time.Minute, every: every, phase: 5*time.Minute + every, without: without}
			for _, alone := range []bool{false, true} {
				if alone && every > time.Minute { // nobody knows its age, and that it is not like the others of its workload
					continue
				}
				w := askOn(t, flushed1m, 20, alone, !alone, 10*time.Minute, first, second)
				if w.surges > 0 || w.most > 1.10 {
					t.Errorf("every %s, alone %v: %.2f of the truth at %s, %d answers of a surge", every, alone, w.most, w.mostAt, w.surges)
				}
				first.reset()
				second.reset()
			}
		}
	}
}

// reset has the sidecar begin again.
func (f *flusher) reset() { f.stream, f.sent, f.messages = nil, 0, nil }

// What a new pod of a known workload, or of a known age, counted in its first flush is seen at
// once, and nothing is known of it beyond.
func TestANewPodCountsFromItsFirstFlush(t *testing.T) {
	for name, first := range map[string]*flusher{
		"its workload's interval is known": {name: "a", born: -time.Hour, every: 5 * time.Second, phase: 3 * time.Second},
		"its age is":                       nil,
	} {
		t.Run(name, func(t *testing.T) {
			store, err := aggregator.New(aggregator.Config{})
			if err != nil {
				t.Fatal(err)
			}
			second := &flusher{name: "b", born: 2 * time.Minute, every: 5 * time.Second, phase: 124 * time.Second}
			second.prepare(store.Started(), 126*time.Second)
			store.SetPods(created{{Identity: aggregator.Pod{Namespace: "test", Name: "b"}, Created: store.Started().Add(second.born)}})
			p, before := register(store, preparedKey{namespace: "test", expr: flushed1m}), 0.0
			if first != nil {
				before = 10
				first.prepare(store.Started(), 123*time.Second)
				first.deliver(t, store, 123*time.Second)
			}
			second.deliver(t, store, 124*time.Second)
			a, err := p.query.Eval(t.Context(), store.Started().Add(124*time.Second))
			if err != nil || len(a.Values) != 1 {
				t.Fatalf("answer %+v, error %v", a.Values, err)
			}
			if got, want := a.Values[0].V, before+40./60; math.Abs(got-want) > 0.01 {
				t.Errorf("%g, want %g: what was counted, over the window", got, want)
			}
			if s := store.Pod("test", "b", store.Started().Add(124*time.Second), time.Minute); s.Whole || !s.Oldest.Equal(s.Newest) {
				t.Errorf("state %+v, want nothing known beyond the first row", s)
			}
		})
	}
}
