package aggregator

import "github.com/meshpulse/meshpulse/aggregator/internal/ring"

// The store's own steps, beside the ring's.
const (
	stepBlock      = ring.Steps + iota // a column got a block: its first, or one of another generation
	stepGeneration                     // a table got another generation
	stepClosed                         // the newest row of a table was closed
	stepLogged                         // a table came into the store's log
	stepSelected                       // a pod came into a selector's selections
	stepWatched                        // another set of queries is watched
	stepMarked                         // a query was pushed on the stack of marked ones
	stepWoken                          // who takes them was woken
	stepUnmarked                       // a query that was taken may be marked again
)
