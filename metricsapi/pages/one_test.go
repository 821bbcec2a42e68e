package pages

import (
	"context"
	"errors"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// hour is an HPA's last hour, the newest at now: 10 and 2 replicas, but for some minutes of which
// the parts say what was.
func hour(now time.Time, parts map[int]explain.Point) (history []explain.Point) {
	ten := 10.0
	for i := range 61 {
		q, other := parts[i]
		if !other {
			q = explain.Point{Seen: &ten, Answered: &ten, Rule: explain.RuleSeen, Wanted: 2, Asked: 2, Replicas: 2}
		}
		q.At = now.Add(time.Duration(i-60) * time.Minute)
		history = append(history, q)
	}
	return history
}

func TestThePlotsOfAnHour(t *testing.T) {
	now := time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)
	thirty, eight := 30.0, 8.0
	held := explain.Point{Answered: &thirty, Rule: explain.RuleHeld, Wanted: 3, Asked: 3, Replicas: 3}
	e := told("podinfo", "30", explain.RuleHeld)
	e.At, e.Now = now, now
	e.Metrics[0].History = hour(now, map[int]explain.Point{
		20: {Seen: &thirty, Answered: &thirty, Rule: explain.RuleSurge, Baseline: &eight, Wanted: 3, Asked: 3, Replicas: 2},
		21: {Seen: &thirty, Answered: &thirty, Rule: explain.RuleRaised, Wanted: 5, Asked: 4, Replicas: 3},
		40: {Rule: explain.RuleRefused, Replicas: 2}, 58: held, 59: held, 60: held,
	})
	m := metricOf(&e, 0, newPast())
	want := []string{
		"surge from 14:20:00 to 14:21:00 UTC", "raised from 14:21:00 to 14:22:00 UTC", "no answer from 14:40:00 to 14:41:00 UTC", "held since 14:58:00 UTC",
	}
	if !slices.Equal(m.Spans, want) {
		t.Errorf("spans %q, want %q", m.Spans, want)
	}
	var names []string
	for _, p := range []*plot{m.Value, m.Replicas} {
		for _, l := range p.Lines {
			names = append(names, l.Class+"="+l.Last)
		}
		for i, b := range p.Bands {
			if b.Title != want[i] || b.X < p.Left || b.X+b.Width > p.Right+1 {
				t.Errorf("band %+v lies outside of %v to %v, or is not %q", b, p.Left, p.Right, want[i])
			}
		}
		if len(p.Bands) != len(want) {
			t.Errorf("%d bands", len(p.Bands))
		}
	}
	if got := strings.Join(names, " "); got != "target=30 baseline=- seen=- answered=30 there=3 asked=3 wanted=3" {
		t.Errorf("the newest values: %s", got)
	}
	if len(m.Replicas.Marks) != 1 || m.Replicas.Marks[0].Title != "14:21:00 UTC: raised to 5" {
		t.Errorf("marks %+v", m.Replicas.Marks)
	}
	// Where nothing was answered the line has a gap, and it is drawn up to now.
	answered := m.Value.Lines[3].Path
	if n := strings.Count(answered, "M"); n != 2 || !strings.HasSuffix(answered, "H470.0") {
		t.Errorf("%d parts: %s", n, answered)
	}
	if y := m.Value.Y; y[0].Text != "0" || y[len(y)-1].Text != "30" || y[0].At != m.Value.Bottom || y[len(y)-1].At != m.Value.Top {
		t.Errorf("left axis %+v", y)
	}
	if x := m.Value.X; x[0].Text != "now" || x[len(x)-1].Text != "-60m" {
		t.Errorf("lower axis %+v", x)
	}
}

// A line is drawn within its plot, whatever the values are.
func TestAPlotHoldsItsLines(t *testing.T) {
	now := time.Unix(1000, 0)
	number := regexp.MustCompile(`[A-Z ]([-0-9.]+)`)
	for name, values := range map[string][]float64{
		"zeros": {0, 0}, "ones": {1, 1}, "small": {1e-9, 3e-9}, "large": {1e300, 2e307}, "the largest": {-math.MaxFloat64, math.MaxFloat64},
		"below zero": {-5, -1}, "both": {-7, 23}, "nothing": {math.NaN(), math.Inf(1)}, "one": {4}, "none": {}, "no number": {math.NaN(), 5},
	} {
		var points []point
		for i, v := range values {
			points = append(points, point{now.Add(time.Duration(i) * time.Second), v})
		}
		p := newPlot(name, now, now.Add(time.Minute), points)
		p.add("answered", "answered", points)
		for _, found := range number.FindAllStringSubmatch(p.Lines[0].Path, -1) {
			if v := value(found[1]); !(v >= 0 && v <= plotWidth) {
				t.Errorf("%s: %s is outside, of %s", name, found[1], p.Lines[0].Path)
			}
		}
		if strings.Contains(p.Lines[0].Path, "NaN") || len(p.Y) > 9 {
			t.Errorf("%s: %s, ticks %+v", name, p.Lines[0].Path, p.Y)
		}
	}
}

// podSource tells a pod's value of each instant, a minute back.
type podSource struct {
	source
	now  time.Time
	asks []time.Duration
}

func (s *podSource) One(_ context.Context, namespace, name string, ago time.Duration) (explain.Explanation, error) {
	if s.asks = append(s.asks, ago); ago > time.Minute {
		return explain.Explanation{}, errors.New("at is older than what is kept")
	}
	e := told(name, "30", explain.RuleSeen)
	e.Now, e.At = s.now, s.now.Add(-ago)
	e.Metrics[0].Pods = []explain.Pod{{Namespace: namespace, Name: "a", State: explain.StateReporting, Value: "10"}, {Namespace: namespace, Name: "b", State: explain.StateSilent}}
	if ago == 0 {
		e.Metrics[0].Pods[0].Value = "20"
	}
	return e, nil
}

// TestPodsAreShownBesideEachOther: their pasts are asked for once, as far as they are kept, and all
// have the same scale.
func TestPodsAreShownBesideEachOther(t *testing.T) {
	s := &podSource{now: time.Now()}
	p := newPages(t, s)
	look := p.lookAtOne("shop", "podinfo")
	v := look(t.Context(), nil)
	if want := []time.Duration{0, 30 * time.Second, time.Minute, 90 * time.Second}; !slices.Equal(s.asks, want) {
		t.Errorf("asked for %v, want %v", s.asks, want)
	}
	s.now = s.now.Add(2 * time.Second)
	v = look(t.Context(), v)
	if len(s.asks) != 5 || s.asks[4] != 0 {
		t.Errorf("then asked for %v, want now only", s.asks[4:])
	}
	html := v.pieces["metric0"]
	for _, want := range []string{
		`<span class="name">a</span> <span class="podstate">reporting</span> <b>20</b>`, `d="M107.6 15.0h.1L113.6 15.0L119.6 1.0L120.0 1.0"`,
		`<li class="doubtful"><span class="name">b</span> <span class="podstate">silent</span> <b></b>`, `d=""`,
	} {
		if !strings.Contains(html, want) {
			t.Errorf("no %s in\n%s", want, html)
		}
	}
}

func TestWhatIsTooOldIsForgotten(t *testing.T) {
	p := newPast()
	now := time.Now()
	for i := range 600 {
		e := told("podinfo", "30", explain.RuleSeen)
		e.At = now.Add(time.Duration(2*i) * time.Second)
		e.Now = e.At
		e.Metrics[0].Pods = []explain.Pod{{Name: "a", Value: "1"}}
		if i < 100 {
			e.Metrics[0].Pods = append(e.Metrics[0].Pods, explain.Pod{Name: "gone", Value: "1"})
		}
		p.note(&e)
	}
	if len(p.of) != 1 || len(p.of[podKey{0, "", "a"}]) != 301 {
		t.Errorf("%d pods, %d points", len(p.of), len(p.of[podKey{0, "", "a"}]))
	}
}
