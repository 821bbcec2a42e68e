package aggregator

// step is a store that readers may see and whose place among the others matters. Each is made in one place.
type step uint8

const (
	stepClaim      step = iota // a row was claimed
	stepTime                   // it got its time
	stepHead                   // and became the newest
	stepFirst                  // a column's first row was admitted
	stepLast                   // its newest
	stepEpochs                 // epochs of a column's counts were replaced
	stepBlock                  // a column got a block: its first, or one of another generation
	stepGeneration             // a table got another generation
	stepClosed                 // the newest row of a table was closed
	stepLogged                 // a table came into the store's log
	stepSelected               // a pod came into a selector's selections
	stepWatched                // another set of queries is watched
	stepMarked                 // a query was pushed on the stack of marked ones
	stepWoken                  // who takes them was woken
	stepUnmarked               // a query that was taken may be marked again
)

// hook is called after each step, so that tests can look at what readers find between any two stores of the writers
// themselves (steps_test.go). It is nil otherwise.
type hook func(step)

func (h hook) after(s step) {
	if h != nil {
		h(s)
	}
}
