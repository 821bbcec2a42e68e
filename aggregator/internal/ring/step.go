package ring

// Step is a store that readers may see and whose place among the others matters. Each is made in
// one place.
type Step uint8

// The ring's steps. Whoever keeps rings has steps of its own, from Steps on.
const (
	StepClaim  Step = iota // a row was claimed
	StepTime               // it got its time
	StepHead               // and became the newest
	StepFirst              // a column's first row was admitted
	StepLast               // its newest
	StepTotals             // totals of a column's counts were replaced
	Steps
)

// Hook is called after each step, so that tests can look at what readers find between any two
// stores of the writers themselves (aggregator's steps_test.go). It is nil otherwise.
type Hook func(Step)

// After calls the hook, if there is one.
func (h Hook) After(s Step) {
	if h != nil {
		h(s)
	}
}
