package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/meshpulse/meshpulse/bench/fleet"
)

// row is a line of the results.
type row struct {
	Name   string   `json:"name"`
	Value  float64  `json:"value"`
	Unit   string   `json:"unit"`
	Goal   *float64 `json:"goal"`
	Better string   `json:"better"`
}

// atMost is a row with a goal, the lower the better.
func atMost(name string, value float64, unit string, goal float64) row {
	return row{name, value, unit, &goal, "lower"}
}

// rows are what was seen.
func (b *bench) rows(stats fleet.Stats) []row {
	slices.Sort(b.took)
	p99 := 0.0
	if n := len(b.took); n > 0 {
		p99 = float64(b.took[n*99/100].Microseconds()) / 1000
	}
	return []row{
		{"replicas ended and begun anew", float64(b.kills), "count", nil, "higher"},
		{"sidecars", float64(b.pods), "count", nil, "higher"},
		{"answers asked at ready replicas", float64(b.asked), "count", nil, "higher"},
		atMost("answers more than 1 % from the oracle's", float64(b.wrong), "count", 0),
		atMost("worst answer beside the oracle's", 100*b.worst, "%", 1),
		atMost("no answer", float64(b.refused), "count", 0),
		{"answers that the other replica knew better", float64(b.other), "count", nil, "lower"},
		atMost("answers without a ready surge detector", float64(b.surgeless), "count", 0),
		atMost("flushes lost, most of one sidecar", float64(stats.MostFailed), "count", float64(b.kills)),
		{"connections cut by a kill, most", float64(b.worstLost), "count", nil, "lower"},
		{"p99 of an answer", p99, "ms", nil, "lower"},
		atMost("CPU of both beside one process, per flush", (b.cpu[0]+b.cpu[1])/b.cpu[2], "x", 1.7),
		atMost("CPU of the busier one beside one process", max(b.cpu[0], b.cpu[1])/b.cpu[2], "x", 0.9),
		{"the machine's load over 15 minutes, in the end", machineLoad(), "processes", nil, "lower"},
	}
}

// machineLoad is how many processes want a CPU, 0 where nobody tells.
func machineLoad() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	var one, five, fifteen float64
	_, _ = fmt.Sscan(string(text), &one, &five, &fifteen) // 0 where it has another form
	return fifteen
}

// report prints the rows, and writes them where they are to be kept.
func (b *bench) report(stats fleet.Stats) error {
	rows := b.rows(stats)
	for _, r := range rows {
		fmt.Printf("%-48s %10.3f %s\n", r.Name, r.Value, r.Unit)
	}
	if b.out == "" {
		return nil
	}
	text, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.out, append(text, '\n'), 0o644); err != nil { //nolint:gosec // it is read by everybody
		return err
	}
	return os.WriteFile(strings.TrimSuffix(b.out, ".json")+".md", []byte(table(rows)), 0o644) //nolint:gosec // as above
}

// table is the rows as a document.
func table(rows []row) string {
	w := &strings.Builder{}
	fmt.Fprint(w, "\n# replicas\n\n`make bench-replicas`: two replicas of which one ends under load and begins anew, beside one process that gets all.\n\n"+
		"| measure | value | goal |\n|---|---|---|\n")
	for _, r := range rows {
		goal := ""
		if r.Goal != nil {
			goal = "at most " + strconv.FormatFloat(*r.Goal, 'g', -1, 64)
		}
		fmt.Fprintf(w, "| %s | %s %s | %s |\n", r.Name, strconv.FormatFloat(r.Value, 'g', 5, 64), r.Unit, goal)
	}
	return w.String()
}
