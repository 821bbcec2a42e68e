package explain

import (
	"testing"
	"time"
)

// Of two explanations that with the fewer doubts counts, the graver ones first.
func TestTheExplanationWithTheFewerDoubtsCounts(t *testing.T) {
	of := func(rule Rule, states ...State) *Explanation {
		m := Metric{Rule: rule}
		for _, s := range states {
			m.Pods = append(m.Pods, Pod{State: s})
		}
		return &Explanation{Metrics: []Metric{m}}
	}
	ordered := []*Explanation{
		of(RuleSeen, StateReporting, StateYoung), of(RuleSeen, StateSilent), of(RuleMore), of(RuleHeld), of(RuleHeld, StatePartial), of(RuleRefused),
	}
	for i, a := range ordered {
		if a.Doubtful() != (i > 0) {
			t.Errorf("%d is doubtful: %v", i, a.Doubtful())
		}
		for j, b := range ordered {
			if less := a.Less(b, false); less != (i < j) {
				t.Errorf("%d has fewer doubts than %d: %v", i, j, less)
			}
		}
		if !a.Less(a, true) {
			t.Errorf("%d is not as good as itself", i)
		}
	}
}

// One decision is left of each look of the controller, that which was answered where one is held.
func TestTheHistoryOfTwoReplicasIsOne(t *testing.T) {
	at := func(seconds int, rule Rule) Point { return Point{At: time.Unix(int64(1_500+seconds), 0), Rule: rule} }
	a := &Explanation{Metrics: []Metric{{History: []Point{at(0, RuleSeen), at(15, RuleHeld), at(45, RuleSeen)}}}}
	b := &Explanation{Metrics: []Metric{{History: []Point{at(16, RuleSeen), at(30, RuleIdle), at(46, RuleHeld)}}}}
	a.WithHistory(b)
	want := []Point{at(0, RuleSeen), at(16, RuleSeen), at(30, RuleIdle), at(45, RuleSeen)}
	got := a.Metrics[0].History
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%d: %v, want %v", i, got[i], want[i])
		}
	}
	// Another metric's is not taken.
	b.Metrics[0].Name = "other"
	if a.WithHistory(b); len(a.Metrics[0].History) != len(want) {
		t.Errorf("%v", a.Metrics[0].History)
	}
}
