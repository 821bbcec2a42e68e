package surge

import (
	"math"
	"math/rand/v2"
	"time"

	"gonum.org/v1/gonum/stat/distuv"
)

// Kind is a kind of traffic: how requests arrive about their rate.
type Kind string

// Kinds of traffic. In Gamma and Lognormal the rate of all pods together is drawn anew every flush
// interval; that is noise about a rate that does not change. In Correlated it wanders (the
// logarithm is an Ornstein-Uhlenbeck process, sigma 0.3), and that is a rate that changes.
const (
	Smooth        Kind = "smooth"
	Poisson       Kind = "Poisson"
	Grouped       Kind = "groups of ten"
	Gamma         Kind = "gamma cv 0.3"
	Lognormal     Kind = "lognormal sigma 0.5"
	Correlated20  Kind = "correlated over 20 s"
	Correlated120 Kind = "correlated over 120 s"
)

// Kinds returns all kinds.
func Kinds() []Kind {
	return []Kind{Smooth, Poisson, Grouped, Gamma, Lognormal, Correlated20, Correlated120}
}

const (
	gammaCV          = 0.3
	lognormalSigma   = 0.5
	correlationSigma = 0.3
	groupSize        = 10
)

// intensity is the factor of the rate over time: constant within a slot, known from when the last
// slot was drawn on.
type intensity struct {
	kind  Kind
	r     *rand.Rand
	slot  int64 // milliseconds
	state float64
	sums  []float64 // sums[i]: integral over the slots before slot i, in milliseconds
}

func newIntensity(k Kind, flush time.Duration, r *rand.Rand) *intensity {
	i := &intensity{kind: k, r: r, slot: flush.Milliseconds(), sums: []float64{0}}
	switch k {
	case Smooth, Poisson, Grouped:
		i.slot = math.MaxInt64
	case Correlated20, Correlated120:
		i.slot = 1000
		i.state = r.NormFloat64()
	}
	return i
}

// next draws the next slot's factor, of mean 1.
func (i *intensity) next() float64 {
	switch i.kind {
	case Gamma:
		shape := 1 / (gammaCV * gammaCV)
		return distuv.Gamma{Alpha: shape, Beta: shape, Src: i.r}.Rand()
	case Lognormal:
		return math.Exp(lognormalSigma*i.r.NormFloat64() - lognormalSigma*lognormalSigma/2)
	case Correlated20:
		return i.wander(20)
	case Correlated120:
		return i.wander(120)
	}
	return 1
}

func (i *intensity) wander(seconds float64) float64 {
	keep := math.Exp(-1 / seconds)
	i.state = keep*i.state + math.Sqrt(1-keep*keep)*i.r.NormFloat64()
	return math.Exp(correlationSigma*i.state - correlationSigma*correlationSigma/2)
}

// over is the integral of the factor over (from, to], in seconds. Times are milliseconds from the
// start.
func (i *intensity) over(from, to int64) float64 {
	if i.slot == math.MaxInt64 {
		return float64(to-from) / 1000
	}
	return (i.until(to) - i.until(from)) / 1000
}

func (i *intensity) until(t int64) float64 {
	n := t / i.slot
	for int64(len(i.sums)) <= n+1 {
		i.sums = append(i.sums, i.sums[len(i.sums)-1]+i.next()*float64(i.slot))
	}
	return i.sums[n] + (i.sums[n+1]-i.sums[n])*float64(t%i.slot)/float64(i.slot)
}

// varies reports whether the factor is a change of the rate, and not noise about it.
func (i *intensity) varies() bool { return i.kind == Correlated20 || i.kind == Correlated120 }

// requests draws how many requests arrive where so many are expected; rest is what a smooth stream
// has left over.
func (k Kind) requests(expected float64, rest *float64, r *rand.Rand) float64 {
	switch {
	case expected <= 0:
		return 0
	case k == Smooth:
		n := math.Floor(expected + *rest)
		*rest += expected - n
		return n
	case k == Grouped:
		return groupSize * distuv.Poisson{Lambda: expected / groupSize, Src: r}.Rand()
	}
	return distuv.Poisson{Lambda: expected, Src: r}.Rand()
}

// Load is what the pods together are asked for: a rate over time, requests a second from a time on.
type Load []Rate

// Rate is a rate from a time on.
type Rate struct {
	At        time.Duration
	PerSecond float64
}

// parts calls f for each part of (from, to] that has one rate.
func (l Load) parts(from, to int64, f func(from, to int64, rate float64)) {
	for i, s := range l {
		begin, end := max(from, s.At.Milliseconds()), to
		if i+1 < len(l) {
			end = min(to, l[i+1].At.Milliseconds())
		}
		if begin < end {
			f(begin, end, s.PerSecond)
		}
	}
}
