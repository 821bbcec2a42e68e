package load

import (
	"errors"
	"fmt"
	"math"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Segment is a stretch of a profile: RPS throughout, or a straight line from From to To, or what
// hey sends.
type Segment struct {
	For  metav1.Duration `json:"for"`
	RPS  float64         `json:"rps,omitempty"`
	From float64         `json:"from,omitempty"`
	To   float64         `json:"to,omitempty"`
	Hey  *Hey            `json:"hey,omitempty"`
}

// Hey is the guides' own load: `hey -c Workers -q Rate`, a closed loop of so many workers, each at
// most at that rate.
type Hey struct {
	Workers int     `json:"workers"`
	Rate    float64 `json:"rate"`
}

func (s Segment) ends() (from, to float64) {
	if s.Hey != nil {
		rps := float64(s.Hey.Workers) * s.Hey.Rate
		return rps, rps
	}
	if s.From != 0 || s.To != 0 {
		return s.From, s.To
	}
	return s.RPS, s.RPS
}

// Profile is the arrival rate over time, segment after segment.
type Profile []Segment

// Endless is a length for what is ended by somebody.
const Endless time.Duration = math.MaxInt64

// Steady is a rate, in requests a second, for a length of time.
func Steady(rate float64, length time.Duration) Profile {
	return Profile{{For: metav1.Duration{Duration: length}, RPS: rate}}
}

// Validate says which segment is wrong.
func (p Profile) Validate() error {
	if len(p) == 0 {
		return errors.New("load: no segment")
	}
	for i, s := range p {
		from, to := s.ends()
		switch {
		case s.For.Duration <= 0:
			return fmt.Errorf("load[%d]: `for` must be longer than 0", i)
		case from < 0 || to < 0 || math.IsInf(from+to, 0) || math.IsNaN(from+to):
			return fmt.Errorf("load[%d]: a rate must be 0 or more", i)
		case s.RPS != 0 && (s.From != 0 || s.To != 0), s.Hey != nil && s.RPS+s.From+s.To != 0:
			return fmt.Errorf("load[%d]: either `rps` or `from` and `to` or `hey`", i)
		}
	}
	return nil
}

// Duration is the profile's whole length.
func (p Profile) Duration() time.Duration {
	var sum time.Duration
	for _, s := range p {
		sum += s.For.Duration
	}
	return sum
}

// Rate is the arrival rate at t, in requests a second; before the start and after the end it is 0.
func (p Profile) Rate(t time.Duration) float64 {
	for _, s := range p {
		if t >= 0 && t < s.For.Duration {
			from, to := s.ends()
			return from + (to-from)*t.Seconds()/s.For.Seconds()
		}
		t -= s.For.Duration
	}
	return 0
}

// Arrivals calls yield with the time of each request, in order, until yield says false. The n-th
// request comes when the integral of the rate has reached n, so the count over any stretch is exact
// and no rounding adds up. What hey sends is hey's business.
func (p Profile) Arrivals(yield func(time.Duration) bool) {
	next := 1.0 // what the integral has to reach for the next request
	total := 0.0
	var start time.Duration
	for _, s := range p {
		from, to := s.ends()
		if s.Hey != nil {
			from, to = 0, 0
		}
		length := s.For.Seconds()
		area := (from + to) / 2 * length
		for next <= total+area+1e-9 {
			at := start + time.Duration(inverse(from, to, length, next-total)*float64(time.Second))
			if !yield(at) {
				return
			}
			next++
		}
		total += area
		start += s.For.Duration
	}
}

// inverse is the x at which a line from `from` to `to` over `length` has the area n under it.
func inverse(from, to, length, n float64) float64 {
	slope := (to - from) / length
	if slope == 0 {
		return n / from
	}
	// slope/2 x^2 + from x - n = 0, the root that grows with n, written so that nothing cancels.
	root := math.Sqrt(math.Max(0, from*from+2*slope*n))
	return 2 * n / (from + root)
}

// Change is a step of the rate at a border between two segments.
type Change struct {
	At       time.Duration
	From, To float64
}

// Changes are the profile's steps: the borders at which the rate jumps, the start included where it
// begins above 0.
func (p Profile) Changes() []Change {
	var changes []Change
	var at time.Duration
	last := 0.0
	for _, s := range p {
		from, to := s.ends()
		if from != last {
			changes = append(changes, Change{At: at, From: last, To: from})
		}
		at, last = at+s.For.Duration, to
	}
	return changes
}
