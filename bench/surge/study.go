package surge

import (
	"math/rand/v2"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Cell is one setting of the study.
type Cell struct {
	Kind  Kind
	Pods  int
	Flush time.Duration
	Rate  float64 // requests a second of all pods together
}

// Alarms are what steady traffic of a cell set off.
type Alarms struct {
	Cell
	Days   float64
	Surges int // that were told
	False  int // of these, in which the rate rose by less than a quarter
}

const (
	minute = int64(60_000)
	// falseRise is by how much the true rate has to rise over what it was in the minute before,
	// within the minute after.
	falseRise = 1.25
	// riseOver is what a true rate is the mean over.
	riseOver = int64(10_000)
)

// steady runs a cell for some days.
func Steady(c Cell, days float64, seed uint64) (Alarms, error) {
	a := Alarms{Cell: c, Days: days}
	m, err := newMesh(c.Kind, Load{{0, c.Rate}}, c.Pods, c.Flush, aggregator.SurgeConfig{}, rand.New(rand.NewPCG(seed, 7)))
	if err != nil {
		return a, err
	}
	var last time.Time
	err = m.run(time.Duration(days*24*float64(time.Hour)), 10*time.Second, func(s aggregator.Surge) {
		if !s.Active || s.Triggered.Equal(last) {
			return
		}
		last = s.Triggered
		a.Surges++
		if !m.rises(s.Triggered.Sub(m.start).Milliseconds()) {
			a.False++
		}
	})
	return a, err
}

// rises reports whether the true rate rises by a quarter over the minute before within the minute
// after a time.
func (m *mesh) rises(at int64) bool {
	before := m.trueRate(max(0, at-minute-riseOver), at-riseOver)
	for t := at; t <= at+minute; t += 1000 {
		if m.trueRate(t-riseOver, t) >= falseRise*before {
			return true
		}
	}
	return false
}
