package surge

import (
	"context"
	"math"
	"math/rand/v2"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Rise is a step of the load: from one rate to another, for as long as it is watched.
type Rise struct{ From, To float64 }

// history is what there is before a step, watched how long is looked at after it, and target the
// requests a second of one replica.
const (
	history = 10 * time.Minute
	watched = 90 * time.Second
	target  = 10
)

// Told is what became of one step.
type Told struct {
	// Seen is the time from the step to the row that triggered, Served to an answer of nine tenths
	// of the new rate, and Whole to one that asks for all replicas; Without is the latter where no
	// surge is told. NaN: not within the time that is watched.
	Seen, Served, Whole, Without float64
	// Overshoot is the most replicas that were asked for, over those that the new rate needs.
	Overshoot float64
}

// Rises runs a cell (its rate is the rise's) until after a step, and asks five times a second from
// then on.
func Rises(c Cell, rise Rise, seed uint64) (Told, error) {
	r := rand.New(rand.NewPCG(seed, 11))
	at := history + time.Duration(r.Int64N(int64(c.Flush)))
	told := Told{math.NaN(), math.NaN(), math.NaN(), math.NaN(), 0}
	m, err := newMesh(c.Kind, Load{{0, rise.From}, {at, rise.To}}, c.Pods, c.Flush, aggregator.SurgeConfig{}, r)
	if err != nil {
		return told, err
	}
	if err := m.run(at, 10*time.Second, func(aggregator.Surge) {}); err != nil {
		return told, err
	}
	needs := math.Ceil(rise.To / target)
	first := func(v *float64, after float64) {
		if math.IsNaN(*v) {
			*v = after
		}
	}
	err = m.run(at+watched, 200*time.Millisecond, func(s aggregator.Surge) {
		now := m.time(m.now)
		after := now.Sub(m.start.Add(at)).Seconds()
		if s.Active && s.Triggered.After(m.start.Add(at)) {
			first(&told.Seen, s.Triggered.Sub(m.start.Add(at)).Seconds())
		}
		a, evalErr := m.query.Eval(context.Background(), now)
		if evalErr != nil || len(a.Values) != 1 {
			err = evalErr
			return
		}
		value := a.Values[0].V
		if math.Ceil(value/target) >= needs {
			first(&told.Without, after)
		}
		if s.Active {
			value = max(value, s.Value)
		}
		if value >= 0.9*rise.To {
			first(&told.Served, after)
		}
		if math.Ceil(value/target) >= needs {
			first(&told.Whole, after)
		}
		told.Overshoot = max(told.Overshoot, math.Ceil(value/target)/needs)
	})
	return told, err
}
