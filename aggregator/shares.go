package aggregator

import "sync"

// Shares divides what there is a limit of among senders, so that whoever takes most is refused
// first and whoever comes later always finds room. It is safe for concurrent use.
//
// A sender may have twice the limit times the square of the part of it that nobody has: alone half
// of it, while half is taken already a seventh. With each that takes what it can, the next one's
// share shrinks faster than what is left: 64 such senders leave a hundredth.
type Shares struct {
	limit, least int64

	mu      sync.Mutex
	taken   int64
	outside int64            // what is taken by nobody in particular
	of      map[string]int64 // by sender; never 0
}

// unlimited is a limit that nobody meets.
const unlimited = 1 << 60

// NewShares returns the shares of a limit. Up to least nobody is refused while there is any left.
func NewShares(limit, least int64) *Shares {
	return &Shares{limit: limit, least: least, of: map[string]int64{}}
}

// Take takes n for the sender and reports whether it may have that; where not, nothing is taken.
// Nothing more is never refused: what a sender has, and was promised, it keeps when others' taking
// shrinks its share.
func (s *Shares) Take(sender string, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == 0 {
		return true
	}
	left := s.limit - s.outside - s.taken - n
	if left < 0 || s.of[sender]+n > max(s.least, int64(2*float64(left)*(float64(left)/float64(s.limit)))) {
		return false
	}
	s.taken += n
	s.of[sender] += n
	return true
}

// Give gives n back that the sender took.
func (s *Shares) Give(sender string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken -= n
	if s.of[sender] -= n; s.of[sender] <= 0 {
		delete(s.of, sender)
	}
}

// Move makes what one sender has another's, whatever its share.
func (s *Shares) Move(from, to string, n int64) {
	s.Give(from, n)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken += n
	s.of[to] += n
}

// Outside says what is taken of the limit by nobody in particular.
func (s *Shares) Outside(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outside = n
}

// Over reports whether more is taken than there is: what is outside has grown.
func (s *Shares) Over() bool { return s.Used() > s.limit }

// Used returns what is taken, by senders and outside.
func (s *Shares) Used() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken + s.outside
}

// Taken returns what all have together.
func (s *Shares) Taken() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}
