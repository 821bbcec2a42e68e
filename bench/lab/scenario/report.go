package scenario

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Report is all runs of a scenario and where they come from.
type Report struct {
	Scenario Scenario
	Runs     []Run
	// Versions name the programs, such as "Kubernetes v1.37.0".
	Versions []string
	Date     time.Time
	Command  string
	// More is Markdown that follows the runs, such as a table that is a scenario's own.
	More string
}

// OK says whether every check of every run held.
func (r Report) OK() bool {
	return !slices.ContainsFunc(r.Runs, func(run Run) bool { return !run.OK() })
}

// Markdown is the report as text.
func (r Report) Markdown() string {
	w := &strings.Builder{}
	fmt.Fprintf(w, "\n# %s\n\n%s\n\n`%s`, %s; %s\n", r.Scenario.Name, strings.TrimSpace(r.Scenario.About),
		r.Command, r.Date.UTC().Format("2006-01-02 15:04 MST"), strings.Join(r.Versions, ", "))
	for _, run := range r.Runs {
		fmt.Fprintf(w, "\n## HPA sync %s\n", run.HPASync)
		run.printReactions(w)
		fmt.Fprintf(w, "\n| measure | value | goal |\n|---|---|---|\n")
		for _, m := range run.Measures {
			fmt.Fprintf(w, "| %s | %s | %s |\n", m.Name, m.Text(), GoalText(m))
		}
		fmt.Fprintf(w, "\n| check | seen | |\n|---|---|---|\n")
		for _, v := range run.Verdicts {
			fmt.Fprintf(w, "| %s | %s | %s |\n", v.Say, strings.ReplaceAll(v.Seen, "|", `\|`), map[bool]string{true: "ok", false: "FAILED"}[v.OK])
		}
		run.printLanes(w)
	}
	if r.More != "" {
		fmt.Fprintf(w, "\n%s", r.More)
	}
	return w.String()
}

func (r *Run) printReactions(w *strings.Builder) {
	fmt.Fprintf(w, "\n| lane | step at | rate | first decision | enough replicas ready | first raise of the target | all replicas asked for |\n|---|---|---|---|---|---|---|\n")
	for _, t := range r.Traces {
		for _, reaction := range t.Reactions() {
			fmt.Fprintf(w, "| %s | %s | %g | %s | %s | %s | %s |\n", t.Namespace, reaction.At, t.Load.Rate(reaction.At),
				seen(reaction.Decision), seen(reaction.Enough), seen(reaction.Raise), seen(reaction.All))
		}
	}
}

// longestEvent is how much of an event a table shows: the HPA controller repeats an error's whole
// text.
const longestEvent = 240

func (r *Run) printLanes(w *strings.Builder) {
	fmt.Fprintf(w, "\n| lane | requests sent | failed | average | P95 | desired replicas over time | replicas asked of the target | raised by meshpulse | Warning events |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, t := range r.Traces {
		var short []string
		for _, e := range t.Events {
			short = append(short, shortEvent(e))
		}
		events := strings.ReplaceAll(strings.Join(short, "<br>"), "|", `\|`)
		fmt.Fprintf(w, "| %s | %d | %d | %s | %s | %s | %s | %s | %s |\n", t.Namespace, t.Requests.Requests, t.Requests.Failed,
			millis(t.Requests.Average), millis(t.Requests.P95), t.story(), t.askedStory(), strings.Join(t.Raises, "<br>"), events)
	}
}

// millis is a duration of requests, "none" where there were none.
func millis(ms float64) string {
	if math.IsNaN(ms) {
		return "none"
	}
	return fmt.Sprintf("%.1f ms", ms)
}

// shortEvent is an event on one line of a table.
func shortEvent(event string) string {
	return strings.ReplaceAll(event[:min(len(event), longestEvent)], "\n", " ")
}

// story is the desired replicas as they changed: 1, 2 (52 s), 3 (118 s).
func (t Trace) story() string {
	var parts []string
	last := -1
	for _, s := range t.Samples {
		switch {
		case s.Desired == last:
			continue
		case last < 0:
			parts = append(parts, strconv.Itoa(s.Desired))
		default:
			parts = append(parts, fmt.Sprintf("%d (%.1f s)", s.Desired, s.At.Seconds()))
		}
		last = s.Desired
	}
	return strings.Join(parts, ", ")
}

// askedStory is the replicas that were asked of the target, in the same form.
func (t Trace) askedStory() string {
	var parts []string
	for i, a := range t.Asked {
		if i == 0 {
			parts = append(parts, strconv.Itoa(a.Replicas))
			continue
		}
		parts = append(parts, fmt.Sprintf("%d (%.1f s)", a.Replicas, a.At.Seconds()))
	}
	return strings.Join(parts, ", ")
}

func seen(d time.Duration) string {
	if d == notSeen {
		return "not seen"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// Text is the value with its unit.
func (m Measure) Text() string {
	if math.IsInf(m.Value, 0) {
		return "not seen every time"
	}
	if m.Unit == "count" || m.Unit == "ratio" {
		return strconv.FormatFloat(m.Value, 'f', map[string]int{"count": 0, "ratio": 3}[m.Unit], 64)
	}
	return strconv.FormatFloat(m.Value, 'f', 1, 64) + " " + m.Unit
}

// GoalText is what a measure should be, "" where it has no goal.
func GoalText(m Measure) string {
	if m.Goal == nil {
		return ""
	}
	return map[string]string{"lower": "at most ", "higher": "at least "}[m.Better] + strconv.FormatFloat(*m.Goal, 'g', -1, 64)
}

// Missed are the measures that are not what they should be, with what they are.
func Missed(measures []Measure) (all []string) {
	for _, m := range measures {
		if m.Better == "lower" && m.Value > *m.Goal || m.Better == "higher" && m.Value < *m.Goal {
			all = append(all, m.Name+": "+m.Text())
		}
	}
	return all
}

// Row is a measure in the results' JSON; a figure that was never seen is null.
type Row struct {
	Name   string   `json:"name"`
	Value  *float64 `json:"value"`
	Unit   string   `json:"unit"`
	Goal   *float64 `json:"goal,omitempty"`
	Better string   `json:"better,omitempty"`
}

// RowOf is a measure's row; the prefix goes before its name.
func RowOf(prefix string, m Measure) Row {
	r := Row{Name: prefix + m.Name, Unit: m.Unit, Goal: m.Goal, Better: m.Better}
	if !math.IsInf(m.Value, 0) && !math.IsNaN(m.Value) {
		r.Value = &m.Value
	}
	return r
}

// Write leaves lab-NAME.md and .json in dir, and what is only looked at, .csv and .svg, in the
// folder seen.
func (r Report) Write(dir, seen string) error {
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.MkdirAll(seen, 0o755)); err != nil {
		return err
	}
	name := "lab-" + r.Scenario.Name
	var rows []Row
	for _, run := range r.Runs {
		failed := 0
		for _, v := range run.Verdicts {
			if !v.OK {
				failed++
			}
		}
		none := 0.0
		prefix := fmt.Sprintf("%s, sync %s: ", r.Scenario.Name, run.HPASync)
		rows = append(rows, RowOf(prefix, Measure{Name: "checks failed", Value: float64(failed), Unit: "count", Goal: &none, Better: "lower"}))
		for _, m := range run.Measures {
			rows = append(rows, RowOf(prefix, m))
		}
	}
	return errors.Join(
		WriteRows(filepath.Join(dir, name+".json"), rows),
		os.WriteFile(filepath.Join(dir, name+".md"), []byte(r.Markdown()), 0o644),
		os.WriteFile(filepath.Join(seen, name+".csv"), []byte(r.csv()), 0o644),
		os.WriteFile(filepath.Join(seen, name+".svg"), []byte(r.svg()), 0o644),
	)
}

// WriteRows writes rows as an indented JSON array.
func WriteRows(path string, rows []Row) error {
	data, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// csv is a line a second for each lane.
func (r Report) csv() string {
	var b strings.Builder
	c := csv.NewWriter(&b)
	// A builder takes everything: no error can be.
	_ = c.Write([]string{"hpa_sync", "lane", "seconds", "rps", "value", "held", "ideal", "desired", "ready"})
	for _, run := range r.Runs {
		for _, t := range run.Traces {
			next := time.Duration(0)
			for _, s := range t.Samples {
				if s.At < next {
					continue
				}
				next = s.At.Truncate(time.Second) + time.Second
				_ = c.Write([]string{
					run.HPASync.String(), t.Namespace, strconv.FormatFloat(s.At.Seconds(), 'f', 2, 64),
					strconv.FormatFloat(s.RPS, 'g', 6, 64), number(s.Value), s.Held,
					strconv.Itoa(t.Ideal(s.RPS)), strconv.Itoa(s.Desired), strconv.Itoa(s.Ready),
				})
			}
		}
	}
	c.Flush()
	return b.String()
}

func number(v float64) string {
	if math.IsNaN(v) {
		return ""
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}
