package metricsapi

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// A code that nobody reports yet is 0 where it is all that is asked for. As a part of arithmetic it
// leaves the expression without a value; what the error and the event say to write then, to the
// letter, gives one.
func TestACodeThatIsNotReportedYetAloneAndInArithmetic(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	const (
		mine = `destination_workload="podinfo",reporter="destination"`
		none = `sum(rate(istio_requests_total{` + mine + `,response_code="500"}[1m]))`
		all  = `sum(rate(istio_requests_total{` + mine + `}[1m]))`
	)
	by := func(expr string) string { return strings.Replace(expr, "sum", "sum by (pod) ", 1) }
	remedy := regexp.MustCompile(`(?s)write \(… or (.+?)\) around (.+?)(: |\. Check)`)
	for expr, want := range map[string]int64{
		none:                                      0,
		"1000 * " + none:                          0,
		none + " + " + none:                       0,
		none + " / " + all:                        0,
		"100 * " + none + " / " + all:             0,
		none + " / " + all + " * 100":             0,
		"(" + none + ")\n  / " + all:              0,
		all + " + 5 * " + none:                    36000,
		all + " - " + none:                        36000,
		"sum(" + by(none) + " / " + all + ")":     0,
		by(none) + " / " + by(all):                0,
		"sum(" + by(all) + " + " + by(none) + ")": 36000,
		"max(" + none + " / " + all + ")":         0,
		all + " and " + none:                      36000,
	} {
		got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, expr, 10*time.Minute)
		alone := !strings.Contains(expr, all) && !strings.Contains(expr, by(all))
		if alone {
			if got.err != "" || got.sum != 0 || !got.told(hpas.ReasonUnreportedValue, "it counts as none") {
				t.Errorf("alone %s is %s", expr, got)
			}
			continue
		}
		if !strings.Contains(got.err, "no value") || !got.told(hpas.ReasonUnreportedValue, "the expression has no value") {
			t.Errorf("as a part, %s is %s", expr, got)
			continue
		}
		texts := []string{got.err}
		for _, e := range got.events {
			if e.Reason == hpas.ReasonUnreportedValue {
				texts = append(texts, e.Message)
			}
		}
		for _, text := range texts {
			write := remedy.FindStringSubmatch(text)
			if write == nil {
				t.Errorf("no remedy for %s: %s", expr, text)
				continue
			}
			better := strings.Replace(expr, write[2], "("+write[2]+" or "+write[1]+")", 1)
			if after := m.ask(hpas.Vocabulary{Keeps: istioOnly}, better, 10*time.Minute); after.err != "" || after.sum != want || after.told(hpas.ReasonUnreportedValue, "") {
				t.Errorf("the remedy %s gives %s, want %dm", better, after, want)
			}
		}
	}
	if got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, all+" / "+none, 10*time.Minute); !strings.Contains(got.err, "and the rest is divided by it") || strings.Contains(got.err, "vector(0)") {
		t.Errorf("divided by what is not reported: %s", got)
	}
}
