package aggregator

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
)

func TestWhatCanSurge(t *testing.T) {
	tests := map[string]struct {
		expr            string
		can, notActable bool
	}{
		"requests":                              {expr: `sum(rate(istio_requests_total[1m]))`, can: true},
		"their increase":                        {expr: `sum(increase(istio_requests_total[1m]))`, can: true},
		"messages":                              {expr: `sum(rate(istio_request_messages_total[1m]))`, can: true},
		"a count":                               {expr: `sum(rate(istio_request_duration_milliseconds_count[1m]))`, can: true},
		"a multiple":                            {expr: `2 * sum(rate(istio_requests_total[1m])) / 3`, can: true},
		"a sum of sums":                         {expr: `sum(rate(istio_requests_total[1m])) + sum(rate(istio_request_messages_total[1m]))`, can: true},
		"a ratio of counts":                     {expr: `sum(rate(istio_requests_total{response_code="500"}[1m])) / sum(rate(istio_requests_total[1m]))`, can: true},
		"a ratio of counts that are matched":    {expr: `sum(rate(istio_requests_total{response_code="500"}[1m])) / on () group_left () sum(rate(istio_requests_total[1m]))`, can: true},
		"a ratio that may have no numerator":    {expr: `(sum(rate(istio_requests_total{response_code="500"}[1m])) or vector(0)) / sum(rate(istio_requests_total[1m]))`, can: true},
		"in flight, by its count":               {expr: `sum(rate(istio_request_duration_milliseconds_sum[1m])) / 1000`, can: true, notActable: true},
		"a mean latency":                        {expr: `sum(rate(istio_request_duration_milliseconds_sum[1m])) / sum(rate(istio_request_duration_milliseconds_count[1m]))`},
		"a quantile":                            {expr: `histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds_bucket[1m])) by (le))`},
		"bytes":                                 {expr: `sum(rate(istio_tcp_sent_bytes_total[1m]))`},
		"groups":                                {expr: `sum(rate(istio_requests_total[1m])) by (pod)`},
		"a mean":                                {expr: `avg(rate(istio_requests_total[1m]))`},
		"a difference may be of two large ones": {expr: `sum(rate(istio_requests_total[1m])) - sum(rate(istio_request_messages_total[1m]))`},
		"a number":                              {expr: `vector(1)`},
		"no PromQL":                             {expr: `sum(`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := CanSurge(tc.expr); got != tc.can {
				t.Fatalf("%s: %t, want %t", tc.expr, got, tc.can)
			}
			s := mustStore(t)
			q, err := s.Query(tc.expr)
			if err != nil {
				return
			}
			d, err := q.DetectSurges(SurgeConfig{})
			if (err == nil) != tc.can || err != nil && !errors.Is(err, ErrNoSurge) {
				t.Fatalf("%s: %v", tc.expr, err)
			}
			if err == nil && d.Actable() == tc.notActable {
				t.Errorf("%s may be acted on: %t", tc.expr, d.Actable())
			}
		})
	}
}

func mustStore(t *testing.T) *Store {
	t.Helper()
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// surgePods are pods that flush a counter each, in a synctest bubble.
type surgePods struct {
	t     *testing.T
	store *Store
	r     *rand.Rand
	pods  []*surgeTestPod
}

type surgeTestPod struct {
	stream *Stream
	next   time.Time
	flush  time.Duration
	total  float64
	share  float64
	last   time.Time
}

func newSurgePods(t *testing.T, n int, flush time.Duration, seed uint64) *surgePods {
	p := &surgePods{t: t, store: mustStore(t), r: rand.New(rand.NewPCG(seed, 1))}
	for i := range n {
		st := p.store.Connect(Pod{Namespace: "test", Name: string(rune('a' + i)), FlushInterval: flush})
		next := time.Now().Add(time.Duration(p.r.Int64N(int64(flush))))
		p.pods = append(p.pods, &surgeTestPod{stream: st, flush: flush, share: 1 / float64(n), next: next, last: next.Add(-flush)})
	}
	return p
}

// run has the pods flush until a time has passed, at a rate of all together, and calls at after
// each.
func (p *surgePods) run(d time.Duration, rate float64, at func()) {
	for end := time.Now().Add(d); ; {
		pod := slices.MinFunc(p.pods, func(a, b *surgeTestPod) int { return a.next.Compare(b.next) })
		if pod.next.After(end) {
			time.Sleep(time.Until(end))
			return
		}
		time.Sleep(time.Until(pod.next))
		pod.total += math.Round(rate * pod.share * time.Since(pod.last).Seconds() * (0.9 + 0.2*p.r.Float64()))
		pod.last, pod.next = time.Now(), time.Now().Add(pod.flush+time.Duration(p.r.IntN(40)-20)*time.Millisecond)
		stamp := time.Now().UnixMilli()
		b := &Batch{Timestamp: stamp, Samples: []Sample{{Key: 1, Timestamp: stamp, Kind: Counter, Value: pod.total}}}
		if err := pod.stream.Commit(time.Now(), b, described{named("istio_requests_total", labels.EmptyLabels())}); err != nil {
			p.t.Fatal(err)
		}
		at()
	}
}

func (p *surgePods) detector(c SurgeConfig) *SurgeDetector {
	q, err := p.store.Register(`sum(rate(istio_requests_total[1m]))`)
	if err != nil {
		p.t.Fatal(err)
	}
	d, err := q.DetectSurges(c)
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

func (p *surgePods) close() {
	for _, pod := range p.pods {
		pod.stream.Close()
	}
}

func TestStepIsToldAndLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newSurgePods(t, 1, 5*time.Second, 1)
		defer p.close()
		d := p.detector(SurgeConfig{})
		p.run(30*time.Second, 2, func() {})
		if s := d.At(time.Now()); s.Ready || s.Active {
			t.Fatalf("after half a minute: %+v", s)
		}
		p.run(5*time.Minute, 2, func() {
			if s := d.At(time.Now()); s.Active {
				t.Fatalf("steady traffic: %+v", s)
			}
		})
		if s := d.At(time.Now()); !s.Ready {
			t.Fatalf("not ready: %+v", s)
		}
		step := time.Now()
		var rows []Surge
		p.run(55*time.Second, 60, func() { rows = append(rows, d.At(time.Now())) })
		first := slices.IndexFunc(rows, func(s Surge) bool { return s.Active })
		if first < 0 || first > 1 {
			t.Fatalf("told in row %d", first)
		}
		s := rows[first]
		if s.Triggered.Sub(step) > 10*time.Second || s.Tail > 3e-9 || math.Abs(s.Baseline-2) > 0.4 || s.Newest.Before(s.To) {
			t.Errorf("told as %+v", s)
		}
		for _, s := range rows[first+1:] {
			if math.Abs(s.Rate-60) > 8 || s.Value != s.Rate || s.From.Before(step) {
				t.Errorf("served as %+v", s)
			}
		}
		p.run(30*time.Second, 60, func() {})
		if s := d.At(time.Now()); s.Active {
			t.Errorf("still on, though the query's window lies inside: %+v", s)
		}
		p.run(3*time.Minute, 2, func() {})
		told := false
		p.run(15*time.Second, 60, func() { told = told || d.At(time.Now()).Active })
		if !told {
			t.Error("the second wave is not told")
		}
	})
}

// TestWhatBeginsIsNotNoise: load that begins before there is a minute to compare it with is learned
// as nothing.
func TestWhatBeginsIsNotNoise(t *testing.T) {
	for idle := 10 * time.Second; idle <= 80*time.Second; idle += 5 * time.Second {
		synctest.Test(t, func(t *testing.T) {
			p := newSurgePods(t, 1, 5*time.Second, 3)
			defer p.close()
			d := p.detector(SurgeConfig{})
			p.run(idle, 0, func() {})
			p.run(5*time.Minute, 2, func() { d.At(time.Now()) })
			told := false
			p.run(10*time.Second, 12, func() { told = told || d.At(time.Now()).Active })
			if !told {
				t.Errorf("idle for %s before: 12/s after five minutes of 2/s are not told", idle)
			}
		})
	}
}

// TestStepIsServedOverALongWindow: until the query's window lies inside the surge, though the fold
// keeps less than the window.
func TestStepIsServedOverALongWindow(t *testing.T) {
	for _, window := range []string{"10m", "30m"} {
		synctest.Test(t, func(t *testing.T) {
			p := newSurgePods(t, 1, 5*time.Second, 1)
			defer p.close()
			q, err := p.store.Register(`sum(rate(istio_requests_total[` + window + `]))`)
			if err != nil {
				t.Fatal(err)
			}
			d, err := q.DetectSurges(SurgeConfig{})
			if err != nil {
				t.Fatal(err)
			}
			p.run(35*time.Minute, 2, func() {})
			step := time.Now()
			p.run(35*time.Minute, 60, func() {
				a, err := q.Eval(t.Context(), time.Now())
				if err != nil || len(a.Values) != 1 {
					t.Fatal(a.Values, err)
				}
				served, s := a.Values[0].V, d.At(time.Now())
				if s.Active {
					served = max(served, s.Value)
				}
				if since := time.Since(step); since > 30*time.Second && served < 50 {
					t.Fatalf("[%s]: of 60/s %.1f are served %s after the step: %+v", window, served, since.Round(time.Second), s)
				}
			})
		})
	}
}

// TestGapIsNoSurge: counters tell of the time that nobody heard of, interval histograms do not, and
// one expression may read both.
func TestGapIsNoSurge(t *testing.T) {
	const requests, durations = `sum(rate(istio_requests_total[1m]))`, `sum(rate(istio_request_duration_milliseconds_count[1m]))`
	for _, expr := range []string{requests, durations, requests + " / " + durations, requests + " + " + durations} {
		for _, lost := range []int{1, 2, 4, 6, 12} {
			synctest.Test(t, func(t *testing.T) {
				p := newSurgePods(t, 0, 0, 1)
				q, err := p.store.Register(expr)
				if err != nil {
					t.Fatal(err)
				}
				d, err := q.DetectSurges(SurgeConfig{})
				if err != nil {
					t.Fatal(err)
				}
				st := p.store.Connect(Pod{Namespace: "test", Name: "a", FlushInterval: 5 * time.Second})
				defer st.Close()
				names := described{named("istio_requests_total", labels.EmptyLabels()), named("istio_request_duration_milliseconds", labels.EmptyLabels())}
				for i, total := 0, 0.0; i < 160; i++ {
					time.Sleep(5 * time.Second)
					if total += 500; i >= 120 && i < 120+lost {
						continue
					}
					stamp := time.Now().UnixMilli()
					b := &Batch{Timestamp: stamp, Samples: []Sample{
						{Key: 1, Timestamp: stamp, Kind: Counter, Value: total},
						{Key: 2, Timestamp: stamp, Kind: Histogram, Count: 500, Value: 5000},
					}}
					if err := st.Commit(time.Now(), b, names); err != nil {
						t.Fatal(err)
					}
					if s := d.At(time.Now()); s.Active {
						t.Fatalf("%s: %d flushes were lost of constant traffic: %+v", expr, lost, s)
					}
				}
			})
		}
	}
}

// TestSurgeDoesNotDependOnWhoAsks: detectors of one query that are asked at different times say the
// same.
func TestSurgeDoesNotDependOnWhoAsks(t *testing.T) {
	active := 0
	for seed := range uint64(12) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 9))
			p := newSurgePods(t, 1+r.IntN(6), time.Duration(1+r.IntN(5))*time.Second, seed)
			defer p.close()
			often, seldom, never := p.detector(SurgeConfig{}), p.detector(SurgeConfig{}), p.detector(SurgeConfig{})
			for i := range 12 {
				rate, lasts := math.Exp(4*r.Float64()), 70+r.IntN(100)
				if i%2 == 1 {
					rate, lasts = 20*rate, 5+r.IntN(60)
				}
				p.run(time.Duration(lasts)*time.Second, rate, func() {
					often.At(time.Now())
					if r.IntN(20) == 0 {
						seldom.At(time.Now())
					}
				})
				time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
				now := time.Now()
				want := often.At(now)
				if want.Active {
					active++
				}
				for name, d := range map[string]*SurgeDetector{"asked seldom": seldom, "asked now": never} {
					if diff := cmp.Diff(want, d.At(now)); diff != "" {
						t.Errorf("seed %d, %s (-asked often +%s):\n%s", seed, name, name, diff)
					}
				}
			}
		})
	}
	if active < 10 {
		t.Errorf("a surge was on %d times: the histories tell nothing", active)
	}
}

// TestRatioIsServedOverTheSurge: both sides over the same interval.
func TestRatioIsServedOverTheSurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mustStore(t)
		q, err := s.Register(`sum(rate(istio_requests_total{response_code="500"}[1m])) / sum(rate(istio_requests_total[1m]))`)
		if err != nil {
			t.Fatal(err)
		}
		d, err := q.DetectSurges(SurgeConfig{})
		if err != nil {
			t.Fatal(err)
		}
		st := s.Connect(Pod{Namespace: "test", Name: "a"})
		defer st.Close()
		good, bad := 1000.0, 100.0
		var got Surge
		for i := range 100 {
			time.Sleep(5 * time.Second)
			good, bad = good+400, bad+20
			if i >= 95 {
				good, bad = good-100, bad+280
			}
			stamp := time.Now().UnixMilli()
			b := &Batch{Timestamp: stamp, Samples: []Sample{{Key: 1, Timestamp: stamp, Kind: Counter, Value: good}, {Key: 2, Timestamp: stamp, Kind: Counter, Value: bad}}}
			code := func(c string) labels.Labels {
				return named("istio_requests_total", labels.FromStrings("response_code", c))
			}
			if err := st.Commit(time.Now(), b, described{code("200"), code("500")}); err != nil {
				t.Fatal(err)
			}
			got = d.At(time.Now())
		}
		if !got.Active || math.Abs(got.Value-0.5) > 1e-6 || math.Abs(got.Rate-60) > 1e-6 {
			t.Errorf("%+v, want a ratio of 0.5 at 60 errors a second", got)
		}
	})
}

// TestRowsAreReadOnce: whatever is committed while a detector is asked is counted, and once.
func TestRowsAreReadOnce(t *testing.T) {
	p := &surgePods{t: t, store: mustStore(t)}
	d := p.detector(SurgeConfig{})
	const pods, flushes, spacing = 6, 400, 100 * time.Millisecond
	var writers sync.WaitGroup
	for i := range pods {
		writers.Go(func() {
			st := p.store.Connect(Pod{Namespace: "test", Name: string(rune('a' + i)), FlushInterval: spacing})
			defer st.Close()
			for n := range flushes {
				at := p.store.started.Add(time.Duration(n+1) * spacing)
				stamp := at.UnixMilli()
				b := &Batch{Timestamp: stamp, Samples: []Sample{{Key: 1, Timestamp: stamp, Kind: Counter, Value: float64(1000 + 7*n)}}}
				if err := st.Commit(at, b, described{named("istio_requests_total", labels.EmptyLabels())}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	now := p.store.started.Add(flushes * spacing)
	for asking := true; asking; {
		select {
		case <-done:
			asking = false
		default:
		}
		d.At(now)
	}
	got := d.rules.Count(0, 0, math.MaxInt64/2)
	if want := float64(pods * 7 * (flushes - 1)); math.Abs(got-want) > 1e-6 {
		t.Errorf("%g requests were counted, want %g", got, want)
	}
}
