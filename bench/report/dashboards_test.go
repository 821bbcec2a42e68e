package main

import (
	"strings"
	"testing"
	"time"
)

// An autoscaler may wait half as long again as without dashboards, or 5 ms longer where that is
// more; and what is neither answered nor refused is a failure.
func TestAnAutoscalersWaitIsHeldAgainstThatWithoutDashboards(t *testing.T) {
	of := func(ms ...int) (took []time.Duration) {
		for _, m := range ms {
			took = append(took, time.Duration(m)*time.Millisecond)
		}
		return took
	}
	for name, c := range map[string]struct {
		alone, under int
		failed       int
		missed       string
	}{
		"5 ms are more than half":        {alone: 4, under: 9},
		"more than 5 ms":                 {alone: 4, under: 10, missed: "p99"},
		"half is more than 5 ms":         {alone: 20, under: 30},
		"more than half":                 {alone: 20, under: 31, missed: "p99"},
		"neither answered nor refused":   {alone: 4, under: 4, failed: 1, missed: "otherwise"},
		"refused, and told as its share": {alone: 4, under: 4},
	} {
		took := []asked{{answers: of(1, c.alone)}}
		for range dashboardLoads[1:] {
			took = append(took, asked{of(1, c.under), panelStats{Took: of(50), Refused: 1, Failed: c.failed}})
		}
		tab := newTable("x", time.Unix(0, 0))
		dashboardsTold(tab, took)
		var missed []string
		shares := 0
		for _, r := range tab.Rows {
			if r.reached() == "NO" {
				missed = append(missed, r.Name)
			}
			if r.Unit == "share" && r.Value == 1/float64(2+c.failed) {
				shares++
			}
		}
		if shares != len(dashboardLoads)-1 {
			t.Errorf("%s: %d shares of what was refused", name, shares)
		}
		if (c.missed == "") != (len(missed) == 0) || !strings.Contains(strings.Join(missed, " "), c.missed) {
			t.Errorf("%s: goals missed: %q, want %q", name, missed, c.missed)
		}
	}
}
