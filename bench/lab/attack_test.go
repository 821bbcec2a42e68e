package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/bench/attack"
)

func TestAnswersUnderAttackAreJudged(t *testing.T) {
	evil := attack.Own()[0].Address
	for name, tc := range map[string]struct {
		answer sent
		want   attackResult
	}{
		"within a hundredth":        {sent{value: 1.009 * truth}, attackResult{Right: 1}},
		"and held all the same":     {sent{value: truth, held: "x"}, attackResult{Right: 1}},
		"held, and names who it is": {sent{value: 520, held: "two senders: 127.98.0.1 and " + evil}, attackResult{Held: 1, HeldFor: 2}},
		"held, and names a victim":  {sent{value: 520, held: "silent (podinfo-1)"}, attackResult{Unnamed: 1, HeldFor: 2}},
		"too low":                   {sent{value: truth / 2}, attackResult{Wrong: 1, Lowest: -0.5}},
		"too high":                  {sent{value: 2 * truth}, attackResult{Wrong: 1, Highest: 1, Above: 2}},
		"too high, and held":        {sent{value: 2 * truth, held: evil}, attackResult{Held: 1, HeldFor: 2, Highest: 1, Above: 2}},
		"none":                      {sent{err: errors.New("no answer")}, attackResult{Missing: 1}},
		"an error that names them":  {sent{err: errors.New("who is " + evil)}, attackResult{Held: 1, HeldFor: 2}},
	} {
		got := attackResult{Lowest: 1, Highest: 1}
		got.take(tc.answer, 2*time.Second)
		got.Lowest, got.Highest, got.After = got.Lowest-1, got.Highest-1, ""
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestAnAttackThatCostsSomethingIsNotOK breaks each of the goals once.
func TestAnAttackThatCostsSomethingIsNotOK(t *testing.T) {
	fine := attackResult{Right: 9, Held: 1, Before: 5, During: 50, Memory: 552, Limit: 512, Peak: 960, Ended: 5, Engine: 4}
	if !fine.ok() {
		t.Errorf("%+v is not ok", fine)
	}
	for name, spoil := range map[string]func(*attackResult){
		"wrong": func(r *attackResult) { r.Wrong = 1 }, "missing": func(r *attackResult) { r.Missing = 1 }, "unnamed": func(r *attackResult) { r.Unnamed = 1 },
		"slow": func(r *attackResult) { r.During = 51 }, "memory": func(r *attackResult) { r.Memory = 554 }, "container": func(r *attackResult) { r.Peak = 961 }, "late": func(r *attackResult) { r.Ended = 5.1 },
		"exit": func(r *attackResult) { r.Exited = true }, "engine": func(r *attackResult) { r.Engine = 4.1 }, "closed": func(r *attackResult) { r.Closed = 1 },
		"no attack": func(r *attackResult) { r.Failure = "x" },
	} {
		r := fine
		spoil(&r)
		if r.ok() || r.verdict() == "ok" {
			t.Errorf("%s is ok", name)
		}
	}
}

func TestWhoCanDoWhatFollowsFromWhatWasSeen(t *testing.T) {
	held := attackReport{Results: []attackResult{{Name: "zero", Right: 1, Held: 99, Lowest: 1, Fewest: victims, HeldAfter: 12}, {Name: "steal", Right: 100, Lowest: 1, Fewest: victims}}}
	fell := attackReport{Results: []attackResult{{Name: "zero", Lowest: 0.5, Fewest: 5}}}
	for _, tc := range []struct {
		report attackReport
		seen   effect
		want   string
	}{
		{held, loses, "no (zero, steal)"},
		{held, holds, "**yes**, zero: 99 of 100 answers, the last 12 s after it (steal)"},
		{fell, loses, "**yes**, zero: lowest answer 0.50 of the truth, 5 replicas"},
	} {
		if got := tc.report.cell([]string{"zero", "steal"}, tc.seen, ""); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
	if got := held.cell([]string{"hpas"}, loses, ""); got != "not tried" {
		t.Errorf("what was not tried is %q", got)
	}
}

// TestEveryAttackIsInTheTable: what is tried is somebody's, and what the table names is tried.
func TestEveryAttackIsInTheTable(t *testing.T) {
	a := &arena{}
	var tried, named []string
	for _, s := range (&lab{}).assaults(a, false, 1) {
		if !strings.HasPrefix(s.name, "together") {
			tried = append(tried, s.name)
		}
	}
	for _, c := range capabilityTable() {
		named = slices.Concat(named, c.down, c.up, c.hold, c.dies)
	}
	slices.Sort(tried)
	slices.Sort(named)
	if diff := cmp.Diff(tried, slices.Compact(named)); diff != "" {
		t.Errorf("(-tried +named):\n%s", diff)
	}
}

// The table's no is not the whole answer, and whoever reads it alone is told so.
func TestTheTableSaysWhatWasNotTried(t *testing.T) {
	results, err := os.ReadFile("../results/attack.md")
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"a report": attackReport{}.markdown(), "the results": string(results)} {
		if !strings.HasSuffix(text, "\n\n"+notTried+"\n") {
			t.Errorf("%s does not end with what was not tried", where)
		}
	}
}

func TestThreeTogetherAreDrawnFromTheSeed(t *testing.T) {
	draw := func(seed uint64) (all []string) {
		for _, s := range (&lab{}).assaults(&arena{}, false, seed) {
			if strings.HasPrefix(s.name, "together") {
				all = append(all, s.what)
			}
		}
		return all
	}
	first := draw(1)
	if len(first) != attackTogether || first[0] == first[1] {
		t.Errorf("drawn are %v", first)
	}
	if diff := cmp.Diff(first, draw(1)); diff != "" {
		t.Errorf("another draw gives others:\n%s", diff)
	}
	if cmp.Equal(first, draw(2)) {
		t.Error("another seed gives the same")
	}
}

// An attack that is misspelt is no run of none, which would be a good one.
func TestAnUnknownAttackIsRefusedWithThoseThatThereAre(t *testing.T) {
	for _, long := range []bool{false, true} {
		all := (&lab{}).assaults(&arena{}, long, 1)
		for _, s := range all {
			if err := known([]string{s.name}, all); err != nil {
				t.Error(err)
			}
		}
		if err := known([]string{all[0].name, "nosuch"}, all); err == nil || !strings.Contains(err.Error(), `"nosuch"`) || !strings.Contains(err.Error(), all[0].name) {
			t.Errorf("an unknown attack: %v", err)
		}
	}
}
