package fleet

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// Warmth says whether a replica has history enough to be asked. It has once it has been up for as
// long as answers look back. Where it has not begun beside others that are active there is nobody
// who knows more: then it is ready at once, as a replica by itself is. It is safe for concurrent
// use.
type Warmth struct {
	self  string
	since time.Time
	takes time.Duration

	mu    sync.Mutex
	known bool // the others are
	alone bool // nobody else was active at some time since the beginning
}

// NewWarmth is of the replica of that name, which has been up since a time; takes is how long
// answers look back.
func NewWarmth(self string, since time.Time, takes time.Duration) *Warmth {
	return &Warmth{self: self, since: since, takes: takes}
}

// See notes what replicas there are.
func (w *Warmth) See(members []Member) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.known = true
	for _, m := range members {
		if m.Name != w.self && m.State == Active {
			return
		}
	}
	w.alone = true
}

// Cold says why the replica is not to be asked yet, nil if it is.
func (w *Warmth) Cold(now time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	left := w.takes - now.Sub(w.since)
	switch {
	case w.alone || left <= 0:
		return nil
	case !w.known:
		return errors.New("it is not known yet whether other replicas have the history that this one has not")
	}
	return fmt.Errorf("warming up for %s more: others have the history that this replica has not", left.Round(time.Second))
}
