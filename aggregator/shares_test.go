package aggregator

import (
	"fmt"
	"testing"
)

// fill lets a sender take one by one as long as it may, and returns how many that were.
func fill(s *Shares, sender string) (n int64) {
	for s.Take(sender, 1) {
		n++
	}
	return n
}

func TestASenderAloneMayHaveHalf(t *testing.T) {
	const limit = 10_000
	s := NewShares(limit, 1)
	if n := fill(s, "greedy"); n < limit*49/100 || n > limit/2 {
		t.Errorf("it took %d of %d", n, limit)
	}
}

func TestWhoComesAfterManyGreedySendersFindsRoom(t *testing.T) {
	const limit = 50_000
	s := NewShares(limit, 16)
	for i := range 64 {
		fill(s, fmt.Sprint("greedy-", i))
	}
	left := limit - s.Taken()
	if left < limit/200 {
		t.Errorf("64 greedy senders left %d of %d", left, limit)
	}
	for i := range 10 {
		if !s.Take(fmt.Sprint("newcomer-", i), 1) {
			t.Errorf("newcomer %d is refused", i)
		}
	}
}

func TestAFewAreNotRefusedWhileThereIsRoom(t *testing.T) {
	s := NewShares(3, 16)
	if n := fill(s, "a"); n != 3 {
		t.Errorf("it took %d of 3", n)
	}
	if s.Take("b", 1) {
		t.Error("more than there is was taken")
	}
	s.Give("a", 1)
	if !s.Take("b", 1) {
		t.Error("what was given back cannot be taken")
	}
}

func TestSharesAreForgottenWithTheirSender(t *testing.T) {
	s := NewShares(1000, 1)
	for i := range 100 {
		sender := fmt.Sprint(i)
		if !s.Take(sender, 5) {
			t.Fatal("refused")
		}
		s.Give(sender, 5)
	}
	if len(s.of) != 0 || s.Taken() != 0 {
		t.Errorf("%d senders are remembered with %d", len(s.of), s.Taken())
	}
}

// What a sender has it keeps: nothing more is never too much, however little is left for others'
// sake.
func TestNothingMoreIsNeverRefused(t *testing.T) {
	s := NewShares(1000, 10)
	if !s.Take("first", 400) || !s.Take("second", 200) {
		t.Fatal("there is room for both")
	}
	if s.Take("first", 1) || !s.Take("first", 0) {
		t.Error("beyond its share by what others took, the first may not have more, and may have nothing more")
	}
	s.Outside(2000)
	if s.Take("second", 1) || !s.Take("second", 0) {
		t.Error("beyond the limit")
	}
}
