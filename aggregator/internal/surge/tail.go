package surge

import (
	"math"

	"gonum.org/v1/gonum/mathext"
)

// tailOf is the probability that chance gives a count of x or more where mean is expected. The
// counts are a negative binomial's: a Poisson's about a rate that is gamma distributed. Requests
// that come in groups do no worse. But where the variance is many times a Poisson's it is the rate
// itself that is drawn, and a lognormal one has a heavier tail.
func tailOf(x, mean, dispersion float64) float64 {
	const drawn = 20 // variance over a Poisson's: groups are seldom larger
	tail := countTail(x, mean, dispersion)
	if dispersion*mean > drawn && x > 0 {
		variance := math.Log1p(dispersion)
		tail = max(tail, math.Erfc((math.Log(x/mean)+variance/2)/math.Sqrt(2*variance))/2)
	}
	return tail
}

// countTail is the probability of a count of x or more where mean is expected: of a negative
// binomial with the variance mean + dispersion mean², which is a Poisson's at a dispersion of 0. x
// need not be whole.
func countTail(x, mean, dispersion float64) float64 {
	const poisson = 1e-6 // below it the two cannot be told apart
	switch {
	case x <= 0:
		return 1
	case mean <= 0:
		return 0
	case dispersion < poisson:
		return mathext.GammaIncReg(x, mean)
	}
	return mathext.RegIncBeta(x, 1/dispersion, dispersion*mean/(1+dispersion*mean))
}
