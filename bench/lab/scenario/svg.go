package scenario

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The plot of a run: a panel for each lane, rates on the left axis, replicas on the right one.
const (
	panelWidth, panelHeight = 860.0, 200.0
	marginLeft, marginTop   = 60.0, 40.0
	panelGap                = 70.0
)

// svg draws load, value, desired and ready replicas over time.
func (r Report) svg() string {
	var b strings.Builder
	top := marginTop
	for _, run := range r.Runs {
		for _, t := range run.Traces {
			t.draw(&b, top, fmt.Sprintf("%s: %s, HPA sync %s", r.Scenario.Name, t.Namespace, run.HPASync))
			top += panelHeight + panelGap
		}
	}
	return picture(panelWidth+2*marginLeft, top, b.String())
}

// picture is a whole file on white, so that it can be read on a dark page too.
func picture(width, height float64, content string) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="white"/>
%s</svg>
`, width, height, content)
}

// shown are the samples until the load's end, where the frame ends too: after it a lane only waits
// for the others.
func (t Trace) shown() []Sample {
	samples := t.between(0, t.Load.Duration())
	if n := len(samples); n > 0 && n < len(t.Samples) {
		last := samples[n-1]
		last.At = t.Load.Duration()
		samples = append(samples, last)
	}
	return samples
}

func (t Trace) draw(b *strings.Builder, top float64, title string) {
	length := max(1, t.Load.Duration().Seconds())
	samples := t.shown()
	rates, replicas := 1.0, 1.0
	for _, s := range samples {
		rates = max(rates, s.RPS)
		if !math.IsNaN(s.Value) {
			rates = max(rates, s.Value)
		}
		replicas = max(replicas, float64(max(s.Desired, s.Ready, t.Ideal(s.RPS))))
	}
	rates, replicas = rates*1.05, replicas+1
	fmt.Fprintf(b, `<text x="%.0f" y="%.0f" font-weight="bold">%s</text>`+"\n", marginLeft, top-22, html.EscapeString(title))
	fmt.Fprintf(b, `<rect x="%.0f" y="%.0f" width="%.0f" height="%.0f" fill="none" stroke="#888"/>`+"\n",
		marginLeft, top, panelWidth, panelHeight)
	for i := range 5 {
		y := top + panelHeight*(1-float64(i)/4)
		fmt.Fprintf(b, `<text x="%.0f" y="%.0f" text-anchor="end">%.3g</text>`, marginLeft-6, y+4, rates*float64(i)/4)
		fmt.Fprintf(b, `<text x="%.0f" y="%.0f">%.3g</text>`+"\n", marginLeft+panelWidth+6, y+4, replicas*float64(i)/4)
	}
	for i := range 7 {
		at := length * float64(i) / 6
		fmt.Fprintf(b, `<text x="%.0f" y="%.0f" text-anchor="middle">%.0f s</text>`+"\n",
			marginLeft+panelWidth*float64(i)/6, top+panelHeight+16, at)
	}
	for i, c := range t.curves(rates, replicas) {
		x := marginLeft + 172*float64(i)
		fmt.Fprintf(b, `<path d="M%.0f %.0fh20" fill="none" %s/><text x="%.0f" y="%.0f">%s</text>`+"\n",
			x, top-9, c.style, x+24, top-5, c.name)
		fmt.Fprintf(b, `<path d="%s" fill="none" %s/>`+"\n", path(samples, func(s Sample) (float64, float64) {
			return marginLeft + panelWidth*s.At.Seconds()/length, top + panelHeight*(1-c.value(s)/c.scale)
		}), c.style)
	}
}

// curve is one of a panel's.
type curve struct {
	name, style string
	scale       float64 // what the frame's upper edge is
	value       func(Sample) float64
}

func (t Trace) curves(rates, replicas float64) []curve {
	return []curve{
		{"load, requests/s (left)", `stroke="#999" stroke-width="1.5"`, rates, func(s Sample) float64 { return s.RPS }},
		{"value (left)", `stroke="#1f77b4" stroke-width="1.5"`, rates, func(s Sample) float64 { return s.Value }},
		{
			"ideal replicas (right)", `stroke="#2ca02c" stroke-dasharray="4 3"`, replicas,
			func(s Sample) float64 { return float64(t.Ideal(s.RPS)) },
		},
		{"desired (right)", `stroke="#d62728" stroke-width="1.5"`, replicas, func(s Sample) float64 { return float64(s.Desired) }},
		{"ready (right)", `stroke="#ff7f0e" stroke-width="1.5"`, replicas, func(s Sample) float64 { return float64(s.Ready) }},
	}
}

// path draws steps: a sample holds until the next. A value that is missing leaves a gap.
func path(samples []Sample, at func(Sample) (x, y float64)) string {
	var b strings.Builder
	drawing, last := false, math.NaN()
	for i, s := range samples {
		x, y := at(s)
		switch {
		case math.IsNaN(y):
			if drawing {
				fmt.Fprintf(&b, "H%.1f", x)
			}
			drawing = false
			continue
		case !drawing:
			fmt.Fprintf(&b, "M%.1f %.1f", x, y)
		case y != last:
			fmt.Fprintf(&b, "H%.1fV%.1f", x, y)
		case i == len(samples)-1:
			fmt.Fprintf(&b, "H%.1f", x)
		}
		drawing, last = true, y
	}
	return b.String()
}
