package aggregator

import "gonum.org/v1/gonum/mathext"

// countTail is the probability of a count of x or more where mean is expected: of a negative binomial with the variance
// mean + dispersion mean², which is a Poisson's at a dispersion of 0. x need not be whole.
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
