package explain

import (
	"strings"
	"testing"
	"time"
	"unicode"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"podinfo, P95 ≤ 3 ms, 東京": "podinfo, P95 ≤ 3 ms, 東京",
		"\x1b[2J\x07":             `\u001b[2J\u0007`,
		"a\nCause: b\tc\r":        `a\nCause: b\tc\u000d`,
		"user\u202egnp.exe":       `user\u202egnp.exe`,
		"\u2066x\u2069\u200b":     `\u2066x\u2069\u200b`,
		"\u009b31m\u2028\xff":     `\u009b31m\u2028\xff`,
		"\U000e0041":              `\U000e0041`,
	} {
		if got := Printable(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

// hostile is an explanation all of whose texts are others'.
func hostile(s string) *Explanation {
	now, value := time.Unix(1000, 0), 1.0
	return &Explanation{
		ObjectMeta: metav1.ObjectMeta{Namespace: s, Name: s}, At: now, Now: now, Target: s, MaxReplicas: 3,
		Events: []hpas.Problem{{Reason: s, Message: s}, {Reason: hpas.ReasonSharedTarget, Message: s + ". " + s}},
		Metrics: []Metric{
			{
				Name: s, Selector: s, Expression: s, Target: s, Value: s, Reason: s, Seen: s, Displayed: s, Rule: RuleHeld, Pods: []Pod{{Namespace: s, Name: s, Workload: s, State: StateSilent, LastFlush: &now, Value: s, Why: s}},
				Surge: &Surge{Active: true, Action: s, Rate: 1, Baseline: 1}, Asks: &Asks{Replicas: 1}, History: []Point{{At: now, Answered: &value}},
			},
			{Name: s, Error: s, Rule: RuleRefused, Pods: []Pod{{Namespace: s, Name: s, State: StateUnwired}}},
		},
		Decision: &Decision{Why: s},
	}
}

// FuzzNothingOfOthersReachesATerminal: no text of others has a control character or a mark that
// turns writing left in what is printed, nor makes a line of its own.
func FuzzNothingOfOthersReachesATerminal(f *testing.F) {
	for _, seed := range []string{"podinfo", "\x1b]0;x\x07", "\u202e\u2066", "a\nRemedy: none", "\xff\xfe\x9b", "\u2028", "a. b: c"} {
		f.Add(seed)
	}
	plain := hostile("x")
	plain.Diagnose()
	f.Fuzz(func(t *testing.T, s string) {
		e := hostile(s)
		e.Diagnose()
		sidecars := Sidecars{Items: []Sidecar{{ObjectMeta: e.ObjectMeta, State: StateSilent, Security: s, Refused: s, HPAs: []string{s}}}}
		query := QueryStatus{Series: []QuerySeries{{Labels: map[string]string{s: s}, Points: []QueryPoint{{Value: s}}}}}
		for what, text := range map[string]string{
			"text": e.Text(), "table": strings.Join(Table([]Explanation{*e}, true, 0), "\n"), "pods": strings.Join(sidecars.Table(true, 0), "\n"),
			"query": strings.Join(query.Table(0), "\n"), "plot": strings.Join(e.Metrics[0].Plot(60, 10), "\n"), "others": PrintableLines(s),
		} {
			for _, r := range text {
				if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' || r == unicode.ReplacementChar && !strings.ContainsRune(s, r)) {
					t.Fatalf("%s prints %U of %q:\n%q", what, r, s, text)
				}
			}
		}
		if n := len(Table([]Explanation{*e}, true, 0)); n != 3 {
			t.Errorf("a table of two metrics has %d lines", n)
		}
		if !strings.HasPrefix(strings.Split(e.Text(), "\n")[1], "Cause: ") || !strings.HasPrefix(strings.Split(e.Text(), "\n")[2], "Remedy: ") {
			t.Errorf("the first lines are\n%s", e.Text())
		}
	})
}
