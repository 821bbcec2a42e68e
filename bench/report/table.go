package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// row is one figure. Goal is nil where none is set; Better says which way is good: "lower" or
// "higher".
type row struct {
	Name   string   `json:"name"`
	Value  float64  `json:"value"`
	Unit   string   `json:"unit"`
	Goal   *float64 `json:"goal"`
	Better string   `json:"better"`
}

// table is what a run says.
type table struct {
	Command  string            `json:"command"`
	Date     string            `json:"date"`
	Versions map[string]string `json:"versions"`
	Rows     []row             `json:"rows"`
	Notes    []string          `json:"notes"`

	title string          // of the page
	body  strings.Builder // what the page says in place of the rows
}

// commit is what this was built from; the linker sets it.
var commit string

func newTable(command string, now time.Time) *table {
	t := &table{title: "Benchmarks", Command: command, Date: now.UTC().Format(time.RFC3339), Versions: map[string]string{
		"meshpulse": commit, "go": runtime.Version(), "cpus": fmt.Sprint(runtime.NumCPU()), "os": runtime.GOOS + "/" + runtime.GOARCH,
	}}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				t.Versions["cpu"] = strings.TrimSpace(value)
				break
			}
		}
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == "google.golang.org/grpc" || d.Path == "github.com/prometheus/prometheus" {
				t.Versions[d.Path] = d.Version
			}
		}
	}
	return t
}

// add adds a figure without a goal, atMost and atLeast one with.
func (t *table) add(name string, value float64, unit, better string) {
	t.Rows = append(t.Rows, row{Name: name, Value: value, Unit: unit, Better: better})
}

func (t *table) atMost(name string, value float64, unit string, goal float64) {
	t.Rows = append(t.Rows, row{name, value, unit, &goal, "lower"})
}

func (t *table) atLeast(name string, value float64, unit string, goal float64) {
	t.Rows = append(t.Rows, row{name, value, unit, &goal, "higher"})
}

// times adds by how many times something is more than ours. A goal of 0 is none.
func (t *table) times(name string, value, goal float64) {
	if goal == 0 {
		t.add(name, value, "x", "higher")
		return
	}
	t.atLeast(name, value, "x", goal)
}

func (t *table) note(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}

func (r row) reached() string {
	switch {
	case r.Goal == nil:
		return ""
	case r.Better == "lower" && r.Value <= *r.Goal, r.Better == "higher" && r.Value >= *r.Goal:
		return "yes"
	}
	return "NO"
}

func (r row) goal() string {
	switch {
	case r.Goal == nil:
		return ""
	case r.Better == "lower":
		return "<= " + number(*r.Goal)
	}
	return ">= " + number(*r.Goal)
}

// number writes a figure with three digits that mean something.
func number(v float64) string {
	switch {
	case v >= 100 || v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// markdown is the table as people read it.
func (t *table) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n`%s`, %s; ", t.title, t.Command, t.Date)
	for _, k := range []string{"meshpulse", "go", "google.golang.org/grpc", "github.com/prometheus/prometheus", "Prometheus server", "os", "cpus", "cpu"} {
		if v := t.Versions[k]; v != "" {
			fmt.Fprintf(&b, "%s %s; ", k, v)
		}
	}
	b.WriteString("\n\n")
	if t.body.Len() > 0 {
		b.WriteString(t.body.String())
	} else {
		t.rowsTo(&b)
	}
	for _, n := range t.Notes {
		fmt.Fprintf(&b, "- %s\n", n)
	}
	return b.String()
}

func (t *table) rowsTo(b *strings.Builder) {
	b.WriteString("| what | value | unit | goal | reached |\n|---|--:|---|---|---|\n")
	for _, r := range t.Rows {
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", r.Name, number(r.Value), r.Unit, r.goal(), r.reached())
	}
	b.WriteString("\n")
}

// write puts NAME.md and NAME.json into the folder.
func (t *table) write(dir, name string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	b, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".md"), []byte(t.markdown()), 0o600)
}
