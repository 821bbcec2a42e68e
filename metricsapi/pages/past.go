package pages

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// past is what each pod's value was, as far as this page knows: an explanation has the value of one
// instant, so those of earlier instants are asked for once, and later ones kept as they come. It is
// for one look at a time.
type past struct {
	of    map[podKey][]point
	next  time.Duration // how far back is asked next
	whole bool          // nothing more can be asked
}

// podKey is a pod as a metric means it.
type podKey struct {
	place           int
	namespace, name string
}

const (
	// pastFor is how far back pods are shown, pastStep how far the instants that are asked for lie
	// apart.
	pastFor, pastStep = 10 * time.Minute, 30 * time.Second
	// pastAtOnce is how many instants are asked for at one look.
	pastAtOnce = 4
)

func newPast() *past { return &past{of: map[podKey][]point{}, next: pastStep} }

// note keeps the values of an explanation in their order in time, and forgets what is too old.
func (p *past) note(e *explain.Explanation) {
	for place := range e.Metrics {
		for _, told := range e.Metrics[place].Pods {
			key := podKey{place, told.Namespace, told.Name}
			q := point{e.At, value(told.Value)}
			points := p.of[key]
			i, known := slices.BinarySearchFunc(points, q, func(a, b point) int { return a.at.Compare(b.at) })
			if known {
				points[i] = q
				continue
			}
			p.of[key] = slices.Insert(points, i, q)
		}
	}
	if e.At.Before(e.Now) {
		return
	}
	for key, points := range p.of {
		points = slices.DeleteFunc(points, func(q point) bool { return e.At.Sub(q.at) > pastFor })
		if p.of[key] = points; len(points) == 0 {
			delete(p.of, key)
		}
	}
}

// fill asks for some instants before, from the newest on, until one is older than what is kept.
func (p *past) fill(ctx context.Context, source Source, namespace, name string) {
	for range pastAtOnce {
		if p.whole {
			return
		}
		e, err := source.One(ctx, namespace, name, p.next)
		if err != nil {
			p.whole = true // as of then nothing is kept; what is wrong otherwise the next look says
			return
		}
		p.note(&e)
		p.next += pastStep
		p.whole = p.next > pastFor
	}
}

// pod is one as the page shows it: a small plot beside its like, all of the same scale.
type pod struct {
	Name, State, Value, Why string
	Doubtful                bool
	Path                    string // of its values
}

// The sizes of a pod's plot.
const podWidth, podHeight = 120, 30

// pods are those of a metric.
func (p *past) pods(m *explain.Metric, place int) (all []pod) {
	low, high, newest := 0.0, 0.0, time.Time{}
	for key, points := range p.of {
		for _, q := range points {
			if key.place == place && !math.IsNaN(q.v) && !math.IsInf(q.v, 0) {
				low, high = min(low, q.v), max(high, q.v)
			}
			if q.at.After(newest) {
				newest = q.at
			}
		}
	}
	if high == low {
		high = low + 1
	}
	for _, told := range m.Pods {
		shown := pod{Name: explain.Printable(told.Name), State: explain.Printable(string(told.State)), Value: explain.Printable(told.Value), Why: explain.Printable(told.Why), Doubtful: told.State.Doubtful()}
		var b strings.Builder
		sign := "M"
		for _, q := range p.of[podKey{place, told.Namespace, told.Name}] {
			if math.IsNaN(q.v) || math.IsInf(q.v, 0) {
				sign = "M"
				continue
			}
			x := podWidth * (1 - newest.Sub(q.at).Seconds()/pastFor.Seconds())
			fmt.Fprintf(&b, "%s%.1f %.1f", sign, x, podHeight-1-(podHeight-2)*part(q.v, low, high))
			if sign == "M" {
				b.WriteString("h.1")
			}
			sign = "L"
		}
		shown.Path = b.String()
		all = append(all, shown)
	}
	return all
}
