package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// told are the rows of a table by what their names begin with is cut off: value, unit, goal and
// whether it is reached.
func told(tab *table, prefix string) map[string]string {
	all := map[string]string{}
	for _, r := range tab.Rows {
		all[strings.TrimPrefix(r.Name, prefix)] = strings.TrimSpace(strings.Join([]string{number(r.Value), r.Unit, r.Better, r.goal(), r.reached()}, " "))
	}
	return all
}

func hold(t *testing.T, tab *table, prefix string, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, told(tab, prefix)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

// holdSome holds some of the rows.
func holdSome(t *testing.T, tab *table, prefix string, want map[string]string) {
	t.Helper()
	got := told(tab, prefix)
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s: got %q, want %q", name, got[name], want[name])
		}
	}
}

func TestAGoalIsReachedAtItsEdgeAndOnTheSideThatIsGood(t *testing.T) {
	tab := &table{}
	tab.atMost("below", 1.4, "x", 1.5)
	tab.atMost("at", 1.5, "x", 1.5)
	tab.atMost("above", 1.51, "x", 1.5)
	tab.atLeast("fewer", 29.9, "x", 30)
	tab.atLeast("as many", 30, "x", 30)
	tab.atLeast("more", 31, "x", 30)
	tab.atMost("none of them", 0, "", 0)
	tab.atMost("one of them", 1, "", 0)
	tab.add("without a goal", 7, "us", "lower")
	hold(t, tab, "", map[string]string{
		"below": "1.40 x lower <= 1.50 yes", "at": "1.50 x lower <= 1.50 yes", "above": "1.51 x lower <= 1.50 NO",
		"fewer": "29.9 x higher >= 30 NO", "as many": "30 x higher >= 30 yes", "more": "31 x higher >= 30 yes",
		"none of them": "0  lower <= 0 yes", "one of them": "1  lower <= 0 NO", "without a goal": "7 us lower",
	})
}

func TestNumbersHaveThreeDigits(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 3: "3", 0.01234: "0.0123", 0.5: "0.5", 1.005: "1.00", 2.345: "2.35", 12.34: "12.3", 99.96: "100.0", 100.4: "100", 12345.6: "12346", -2.5: "-2.5",
	} {
		if got := number(v); got != want {
			t.Errorf("%v: got %s, want %s", v, got, want)
		}
	}
}

func TestATableIsWrittenAsTextAndAsRows(t *testing.T) {
	tab := newTable("make x", time.Unix(0, 0))
	tab.atMost("ratio", 2, "x", 1.5)
	tab.note("It was %s.", "late")
	dir := filepath.Join(t.TempDir(), "results")
	if err := tab.write(dir, "bench"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "bench.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Benchmarks\n", "`make x`, 1970-01-01T00:00:00Z; ", "| ratio | 2 | x | <= 1.50 | NO |\n", "- It was late.\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the text does not hold %q:\n%s", want, text)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "bench.json"))
	if err != nil {
		t.Fatal(err)
	}
	var read table
	if err := json.Unmarshal(data, &read); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tab.Rows, read.Rows); diff != "" || read.Command != "make x" {
		t.Errorf("command %s, rows (-want +got):\n%s", read.Command, diff)
	}
}
