package main

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/bench/surge"
)

// Results of a part of the study would stand where those of the whole are.
func TestOnlyAWholeStudyOfSurgesIsKept(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	for _, tc := range []struct {
		args []string
		ctx  context.Context
		want bool
	}{
		{nil, t.Context(), true},
		{[]string{"--days", "40"}, t.Context(), true},
		{[]string{"--days", "1"}, t.Context(), false},
		{[]string{"--days", "80"}, t.Context(), false},
		{[]string{"--runs", "1"}, t.Context(), false},
		{[]string{"--faults", "25"}, t.Context(), false},
		{nil, ended, false},
	} {
		st, err := newSurgeStudy(tc.args)
		if err != nil {
			t.Fatal(err)
		}
		if got := st.whole(tc.ctx); got != tc.want {
			t.Errorf("%v, ended: %v, is kept: %v", tc.args, tc.ctx.Err(), got)
		}
	}
}

func TestAStudyOfLessThanADayIsRefused(t *testing.T) {
	for _, days := range []string{"0", "-1", "0.5", "NaN"} {
		if _, err := newSurgeStudy([]string{"--days", days}); err == nil || !strings.Contains(err.Error(), "give 1 or more") {
			t.Errorf("--days %s: %v", days, err)
		}
	}
}

func TestFalseScaleUpsArePooledByDayAndCellsHaveTheirOwn(t *testing.T) {
	cell := func(pods int, rate float64, flush time.Duration) surge.Cell {
		return surge.Cell{Kind: surge.Poisson, Pods: pods, Rate: rate, Flush: flush}
	}
	st := &surgeStudy{alarms: []surge.Alarms{
		{Cell: cell(1, 1, 5*time.Second), Days: 3, Surges: 4, False: 2},
		{Cell: cell(1, 1, 5*time.Second), Days: 1, Surges: 1, False: 1},
		{Cell: cell(10, 100, 5*time.Second), Days: 1, Surges: 2, False: 0},
		{Cell: cell(1, 10, time.Second), Days: 4, False: 3, Surges: 3},
	}}
	tab := &table{}
	st.alarmRows(tab)
	hold(t, tab, "", map[string]string{
		"false scale-ups a day, Poisson, flush 5s (3 of 7 surges in 5.0 days)": "0.6 /day lower <= 0.5 NO",
		"of these: Poisson, flush 5s, pods 1, rate 1 (3 in 4.00 days)":         "0.75 /day lower",
		"false scale-ups a day, Poisson, flush 1s (3 of 3 surges in 4.0 days)": "0.75 /day lower <= 1 yes",
		"of these: Poisson, flush 1s, pods 1, rate 10 (3 in 4.00 days)":        "0.75 /day lower",
	})
}

func TestStepsAreMeansOfWhatWasSeenAndSayHowOften(t *testing.T) {
	c := surge.Cell{Kind: surge.Poisson, Pods: 1, Flush: 5 * time.Second}
	st := &surgeStudy{told: map[surge.Cell]map[surge.Rise][]surge.Told{c: {surgeRises[0]: {
		{Seen: 2, Whole: 10, Without: 50, Overshoot: 1}, {Seen: 4, Whole: 20, Without: 60, Overshoot: 2}, {Seen: math.NaN(), Whole: math.NaN(), Without: 70, Overshoot: 1.5},
	}}}}
	tab := &table{}
	st.stepRows(tab)
	holdSome(t, tab, "", map[string]string{
		"overshoot, Poisson, mean over 3 steps":                                                 "1.50 x lower <= 1.25 NO",
		"step 2 -> 60, Poisson, flush 5s, pods 1: seen after (2 of 3)":                          "3 s lower",
		"step 2 -> 60, Poisson, flush 5s, pods 1: asked for whole after (without surge 60.0 s)": "15 s lower",
	})
	if mean, missing := meanOf([]float64{math.NaN(), math.NaN()}); mean != 0 || missing != 2 {
		t.Errorf("the mean of nothing: %v, %d missing", mean, missing)
	}
}
