package shadow

import (
	"cmp"
	"math"
	"sync"
	"time"
)

// Reason is why two readings are likely apart.
type Reason string

// The reasons, the first that holds counts.
const (
	ReasonRule     Reason = "rule"                // what is answered here is not simply the expression's value
	ReasonWindow   Reason = "window"              // less than the whole window is known here
	ReasonStale    Reason = "stale answer"        // as of its newest sample, what is known here agrees with it
	ReasonReporter Reason = "reporter"            // one of both counts each request at both its ends
	ReasonFirst    Reason = "lost first requests" // pods are new, and what a counter begins with is not counted there
	ReasonUnknown  Reason = "unknown"
)

// Reading is what the other says of a metric.
type Reading struct {
	Value float64
	// Age is its newest sample's; nil: not known.
	Age *time.Duration
}

// Comparison is one of a metric's, at an instant.
type Comparison struct {
	At time.Time
	// Ours is answered here, Theirs there; nil: no value.
	Ours, Theirs *float64
	// OursAge and TheirsAge are the newest samples'; nil: not known.
	OursAge, TheirsAge *time.Duration
	// OursAsks and TheirsAsks are the replicas that each would ask for, within the limits of who
	// asks; meaningful where both have values.
	OursAsks, TheirsAsks int32
	Reason               Reason
}

// Difference is how far both are apart, of the larger one: 0 to 1, beyond with other signs. ok is
// false where one has no value.
func (c Comparison) Difference() (d float64, ok bool) {
	if c.Ours == nil || c.Theirs == nil {
		return 0, false
	}
	largest := max(math.Abs(*c.Ours), math.Abs(*c.Theirs))
	if largest == 0 {
		return 0, true
	}
	return math.Abs(*c.Ours-*c.Theirs) / largest, true
}

// kept is how many comparisons of a metric are remembered: an hour's at 15 s, some 30 KB.
const kept = 240

// Agrees is the difference up to which both readings count as the same: the HPA controller's own
// default tolerance.
const Agrees = 0.1

// Summary is what the remembered comparisons of a metric tell.
type Summary struct {
	// Compared had values on both sides, Agreed of them differ by Agrees at most, and Decisions of
	// them would have asked for other replicas.
	Compared, Agreed, Decisions int
	// OursMissing had a value there alone, TheirsMissing here alone.
	OursMissing, TheirsMissing int
	// Newest is the last one, Largest the one with the largest difference; zero without any.
	Newest, Largest Comparison
}

// Records remember comparisons by keys, so many of each. They are safe for concurrent use.
type Records[K comparable] struct {
	mu    sync.Mutex
	rings map[K]*ring
}

type ring struct {
	all  []Comparison // the oldest at next once it is full
	next int
}

// Add takes a comparison.
func (r *Records[K]) Add(key K, c Comparison) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rings == nil {
		r.rings = map[K]*ring{}
	}
	of := r.rings[key]
	if of == nil {
		of = &ring{}
		r.rings[key] = of
	}
	if len(of.all) < kept {
		of.all = append(of.all, c)
		return
	}
	of.all[of.next] = c
	of.next = (of.next + 1) % kept
}

// Keep forgets the keys that are not to be kept.
func (r *Records[K]) Keep(keep func(K) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.rings {
		if !keep(key) {
			delete(r.rings, key)
		}
	}
}

// Summary is a key's, false where nothing is remembered of it.
func (r *Records[K]) Summary(key K) (s Summary, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of := r.rings[key]
	if of == nil {
		return Summary{}, false
	}
	most := -1.0
	for i := range of.all {
		c := of.all[(of.next+i)%len(of.all)]
		s.Newest = c
		d, both := c.Difference()
		switch {
		case both:
			s.Compared++
		case c.Ours != nil:
			s.TheirsMissing++
		case c.Theirs != nil:
			s.OursMissing++
		}
		if !both {
			continue
		}
		if d <= Agrees {
			s.Agreed++
		}
		if c.OursAsks != c.TheirsAsks {
			s.Decisions++
		}
		if cmp.Compare(d, most) > 0 {
			most, s.Largest = d, c
		}
	}
	return s, true
}
