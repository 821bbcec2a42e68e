package main

import (
	"context"
	"strings"
	"testing"
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
