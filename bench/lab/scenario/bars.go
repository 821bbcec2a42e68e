package scenario

import (
	"cmp"
	"errors"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// The plot of a comparison: a bar for each setting.
const (
	barsLeft, barsTop    = 352.0, 56.0
	barsWidth, barHeight = 340.0, 30.0
	barsRight            = 180.0 // for what is written behind a bar
)

// bar is how long a setting took, in seconds: until enough replicas were ready, and until the first
// raise. What was not seen every time is +Inf.
type bar struct {
	setting            string
	mean, worst, raise float64
}

// StepPlot draws how long after the last step of a scenario as many replicas were ready as the load
// needs, from a comparison's rows ("SCENARIO, SETTING: MEASURE").
func StepPlot(s Scenario, rows []Row) (string, error) {
	bars := barsOf(s.Name, rows)
	changes := s.Lanes[0].Load.Changes()
	if len(bars) == 0 || len(changes) == 0 {
		return "", errors.New("nothing of scenario " + s.Name + " was compared, or its load has no step")
	}
	step := changes[len(changes)-1]
	watched := (s.Lanes[0].Load.Duration() - step.At).Seconds()
	at := func(seconds float64) float64 { return barsLeft + barsWidth*min(seconds, watched)/watched }
	var b strings.Builder
	fmt.Fprintf(&b, `<text x="12" y="22" font-weight="bold" font-size="14">From %g to %g requests a second: until the %.0f replicas `+
		"that it needs are ready</text>\n", step.From, step.To, math.Ceil(step.To/s.Lanes[0].PerReplica))
	b.WriteString(`<text x="12" y="42" fill="#555">bar: mean; line: the slowest workload; white: the first raise of the target</text>` + "\n")
	bottom := barsTop + barHeight*float64(len(bars))
	for seconds := 0.0; seconds <= watched; seconds += 15 {
		fmt.Fprintf(&b, `<path d="M%.1f %.0fV%.0f" stroke="#ddd"/><text x="%.1f" y="%.0f" text-anchor="middle">%.0f s</text>`+"\n",
			at(seconds), barsTop, bottom, at(seconds), bottom+16, seconds)
	}
	for i, x := range bars {
		x.draw(&b, barsTop+barHeight*float64(i), watched, at)
	}
	return picture(barsLeft+barsWidth+barsRight, bottom+28, b.String()), nil
}

// barsOf are the settings of a scenario, the fastest first.
func barsOf(scenario string, rows []Row) (bars []bar) {
	for _, r := range rows {
		name, ours := strings.CutPrefix(r.Name, scenario+", ")
		setting, measure, _ := strings.Cut(name, ": ")
		if !ours {
			continue
		}
		i := slices.IndexFunc(bars, func(x bar) bool { return x.setting == setting })
		if i < 0 {
			i, bars = len(bars), append(bars, bar{setting: setting})
		}
		seconds := math.Inf(1)
		if r.Value != nil {
			seconds = *r.Value
		}
		switch measure {
		case Enough:
			bars[i].mean = seconds
		case EnoughWorst:
			bars[i].worst = seconds
		case FirstRaise:
			bars[i].raise = seconds
		}
	}
	slices.SortStableFunc(bars, func(a, b bar) int { return cmp.Compare(a.mean, b.mean) })
	return bars
}

// draw draws a bar, which ends at the frame's edge where enough was not seen every time.
func (x bar) draw(b *strings.Builder, top, watched float64, at func(float64) float64) {
	color := "#0969da"
	switch {
	case strings.Contains(x.setting, "KEDA"):
		color = "#8c959f"
	case strings.Contains(x.setting, "acts"):
		color = "#1a7f37"
	}
	opacity, text := 1.0, fmt.Sprintf("%.1f s (slowest %.1f s)", x.mean, x.worst)
	if math.IsInf(x.mean, 1) {
		opacity, text = 0.5, fmt.Sprintf("not every time in %.0f s", watched)
	}
	middle := top + barHeight/2
	fmt.Fprintf(b, `<text x="%.0f" y="%.0f" text-anchor="end">%s</text>`, barsLeft-8, middle+4, html.EscapeString(x.setting))
	fmt.Fprintf(b, `<rect x="%.0f" y="%.0f" width="%.1f" height="18" fill="%s" opacity="%g"/>`,
		barsLeft, middle-9, at(x.mean)-barsLeft, color, opacity)
	fmt.Fprintf(b, `<path d="M%.1f %.0fH%.1f" stroke="%s" stroke-width="2"/>`, at(x.mean), middle, at(x.worst), color)
	fmt.Fprintf(b, `<path d="M%.1f %.0fv12" stroke="white" stroke-width="2"/>`, at(x.raise), middle-6)
	fmt.Fprintf(b, `<text x="%.1f" y="%.0f">%s</text>`+"\n", at(x.worst)+6, middle+4, text)
}
