package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Column is one of a table's.
type Column struct {
	Title string
	// Rank is its place when there is not room for all: the highest goes first, 0 stays.
	Rank int
}

// Align returns rows as lines with their cells below each other, each as [Printable] leaves it.
func Align(rows [][]string) []string {
	lines := make([]string, len(rows))
	for i := 0; len(rows) > 0 && i < len(rows[0]); i++ {
		longest := 0
		cells := make([]string, len(rows))
		for r, row := range rows {
			cells[r] = Printable(row[i])
			longest = max(longest, utf8.RuneCountInString(cells[r]))
		}
		for r, cell := range cells {
			lines[r] += cell + strings.Repeat(" ", longest-utf8.RuneCountInString(cell)+2)
		}
	}
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return lines
}

// Fit is Align in as many columns as the width holds; rows have a cell for each column, without the
// titles. A width of 0 holds all.
func Fit(columns []Column, rows [][]string, width int) []string {
	shown := make([]int, len(columns))
	for i := range shown {
		shown[i] = i
	}
	for {
		var picked [][]string
		titles := []string{}
		for _, c := range shown {
			titles = append(titles, columns[c].Title)
		}
		picked = append(picked, titles)
		for _, row := range rows {
			var cells []string
			for _, c := range shown {
				cells = append(cells, row[c])
			}
			picked = append(picked, cells)
		}
		lines := Align(picked)
		worst, wide := 0, 0
		for i, c := range shown {
			if columns[c].Rank > columns[shown[worst]].Rank {
				worst = i
			}
		}
		for _, line := range lines {
			wide = max(wide, utf8.RuneCountInString(line))
		}
		if width == 0 || wide <= width || columns[shown[worst]].Rank == 0 {
			for i := range lines {
				lines[i] = Cut(lines[i], width)
			}
			return lines
		}
		shown = append(shown[:worst], shown[worst+1:]...)
	}
}

// Cut is the beginning of a text that is longer than the width; 0 is no limit.
func Cut(text string, width int) string {
	runes := []rune(text)
	if width == 0 || len(runes) <= width {
		return text
	}
	return string(runes[:max(width-1, 0)]) + "…"
}

// Row is a metric's line of a table.
type Row struct {
	// Of is the metric's HPA, Place which of its metrics it is.
	Of    *Explanation
	Place int
	// Cells has one for each column.
	Cells []string
}

// Rows are explanations at a glance, a row for each metric, the worst first.
func Rows(items []Explanation) ([]Column, []Row) {
	columns := []Column{
		{"NAMESPACE", 0}, {"HPA", 0}, {"METRIC", 5}, {"VALUE", 0}, {"TARGETS", 2}, {"NOW", 0}, {"WANTED", 0}, {"AGE", 4}, {"WINDOW", 7}, {"SIDECARS", 3}, {"PROVEN", 8}, {"STATE", 0}, {"WAITS FOR", 6},
	}
	var rows []Row
	shadows := false
	sorted := Sorted(items)
	for i := range sorted {
		e := &sorted[i]
		for place := range e.Metrics {
			rows = append(rows, Row{Of: e, Place: place, Cells: e.row(&e.Metrics[place])})
			shadows = shadows || e.Metrics[place].Shadow != nil
		}
	}
	if shadows {
		columns = append(columns, Column{"SHADOW", 1})
		for i, r := range rows {
			rows[i].Cells = append(r.Cells, r.Of.Metrics[r.Place].Shadow.agreement())
		}
	}
	return columns, rows
}

// Table shows explanations at a glance, a line for each metric, the worst first, in as many columns
// as the width holds (0: all). namespaces: they are of several.
func Table(items []Explanation, namespaces bool, width int) []string {
	columns, of := Rows(items)
	var rows [][]string
	for _, r := range of {
		rows = append(rows, r.Cells)
	}
	if !namespaces {
		columns = columns[1:]
		for i := range rows {
			rows[i] = rows[i][1:]
		}
	}
	return Fit(columns, rows, width)
}

// Sorted returns the explanations by trouble, the worst first, then by name.
func Sorted(items []Explanation) []Explanation {
	rank := func(e Explanation) int {
		if len(e.Troubles) == 0 {
			return len(Kinds())
		}
		return slices.Index(Kinds(), e.Troubles[0].Kind)
	}
	return slices.SortedFunc(slices.Values(items), func(a, b Explanation) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

// row is a metric's.
func (e *Explanation) row(m *Metric) []string {
	value, wanted, old, proven := m.Value, "-", "-", "-"
	if m.Error != "" {
		value = "none"
	}
	if m.Asks != nil {
		wanted = fmt.Sprint(min(max(m.Asks.Replicas, e.MinReplicas), e.MaxReplicas))
	}
	if m.AgeSeconds != nil {
		old = seconds(*m.AgeSeconds)
	}
	if m.Proven != nil {
		proven = fmt.Sprintf("%d/%d", *m.Proven, m.Reporting)
	}
	var waits []string
	for _, p := range m.doubtful() {
		waits = append(waits, p.Name)
	}
	return []string{
		e.Namespace, e.Name, m.Name, value, m.Displayed, fmt.Sprint(e.Replicas.Spec), wanted, old,
		fmt.Sprintf("%s/%s", seconds(m.CoveredSeconds), seconds(m.WindowSeconds)), fmt.Sprintf("%d/%d", m.Reporting, m.Expected), proven, e.state(m), names(waits),
	}
}

// state is a metric's in a word or two.
func (e *Explanation) state(m *Metric) string {
	switch {
	case len(e.Troubles) > 0 && e.Troubles[0].Kind == KindSharedTarget:
		return "shared target"
	case m.Error != "":
		return "no answer"
	case m.Rule == RuleHeld && m.HeldSince != nil:
		return "held " + age(e.At.Sub(*m.HeldSince))
	case m.Rule == RuleHeld:
		return "held"
	case len(e.Troubles) > 0 && e.Troubles[0].Kind == KindWrongUnit:
		return "wrong unit"
	case m.Surge != nil && m.Surge.Active:
		return "surge"
	case m.Rule == RuleRaised:
		return "raised"
	case len(m.doubtful()) > 0:
		return "silent sidecars"
	case len(e.Events) > 0:
		return e.Events[0].Reason
	}
	return "ok"
}
