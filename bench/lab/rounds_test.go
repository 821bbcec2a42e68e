package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLanesStepInRounds(t *testing.T) {
	const s = time.Second
	killed := func(owner int) stepping { return stepping{300 * s, 2 * s, owner} }
	begins, kills := rounds([]stepping{killed(0), killed(1), killed(0), killed(0), killed(0), {300 * s, 0, 1}, {300 * s, 0, 0}, {300 * s, 0, 1}, {300 * s, 0, 1}})
	if diff := cmp.Diff([]kill{{300 * s, 0}, {300*s + round, 1}, {300*s + 2*round, 0}}, kills, cmp.AllowUnexported(kill{})); diff != "" {
		t.Error(diff)
	}
	// Each steps 300 s after it begins: 2 s after its owner is killed, or once both are as they
	// were.
	want := []time.Duration{2 * s, 2*s + round, 2 * s, 2 * s, 2*s + 2*round, recovered, recovered, recovered, recovered + round}
	if diff := cmp.Diff(want, begins); diff != "" {
		t.Error(diff)
	}
}
