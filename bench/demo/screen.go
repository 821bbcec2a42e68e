package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/meshpulse/meshpulse/metricsapi"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

const screenLegend = "VALUE: what the API answers. TARGETS: as kubectl get hpa prints it (m: a thousandth). REPLICAS: what the metric " +
	"alone would ask for, without the controller's tolerance of a tenth; each HPA is shown as if it were the only one."

// column is one of the table's.
type column struct {
	title string
	cell  func(metricsapi.MetricStatus) string
	// rank is its place when there is not room for all: the highest goes first, 0 stays.
	rank int
}

func columns() []column {
	return []column{
		{"HPA", func(m metricsapi.MetricStatus) string { return m.HPA }, 0},
		{"QUERY", queryName, 5},
		{"VALUE", value, 0},
		{"TARGETS", func(m metricsapi.MetricStatus) string { return m.Displayed }, 0},
		{"REPLICAS", replicas, 0},
		{"NEWEST", age, 3},
		{"SIDECARS", sidecarsOf, 2},
		{"WINDOW", coverage, 1},
		{"FIRST EVENT", event, 4},
	}
}

// screen is the view for a terminal of that many columns and rows. It is drawn over the last one,
// and what does not fit is left out from the end, so that nothing scrolls.
func (v view) screen(width, height int) string {
	title := fmt.Sprintf("meshpulse, running for %s (Ctrl-C ends everything): %s", v.running.Round(time.Second), v.known())
	lines := []string{explain.Cut(title, width), ""}
	lines = append(lines, v.table(width)...)
	blocks := [][]string{wrap(v.truth(), width), strings.Split(v.hint, "\n"), wrap(screenLegend, width)}
	for _, m := range v.status.Metrics {
		if m.Error != "" {
			blocks = append(blocks, wrap(queryName(m)+": "+m.Error, width))
		}
	}
	left := height - 1 - len(lines) // the last row is the cursor's
	for _, block := range blocks {
		need := 1
		for _, line := range block {
			need += max(1, (utf8.RuneCountInString(line)+width-1)/width)
		}
		if need > left {
			break
		}
		left -= need
		lines = append(append(lines, ""), block...)
	}
	const home, toEndOfLine, toEndOfScreen = "\x1b[H", "\x1b[K", "\x1b[J"
	lines = lines[:min(len(lines), max(height-1, 1))]
	return home + strings.Join(lines, toEndOfLine+"\n") + toEndOfLine + "\n" + toEndOfScreen
}

// table is a line for each HPA under the titles, aligned, in as many columns as the width holds: as
// meshpulse top does it.
func (v view) table(width int) []string {
	var titles []explain.Column
	for _, c := range columns() {
		titles = append(titles, explain.Column{Title: c.title, Rank: c.rank})
	}
	var rows [][]string
	for _, m := range v.status.Metrics {
		var row []string
		for _, c := range columns() {
			row = append(row, c.cell(m))
		}
		rows = append(rows, row)
	}
	return explain.Fit(titles, rows, width)
}

// wrap breaks a text between words into lines of at most the width, but for words that are longer.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
