package explain

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Series are values over time for a plot; a value that is not known is left out of it.
type Series struct {
	Title  string
	Sign   rune
	Times  []time.Time
	Values []float64
}

// Plot draws what was answered over the last hour, and under it the replicas wanted and there, each
// in so many columns and rows at most; nothing without a history.
func (m *Metric) Plot(width, height int) []string {
	if len(m.History) == 0 {
		return nil
	}
	seen, answered := Series{Title: "seen", Sign: '·'}, Series{Title: "answered", Sign: '*'}
	wanted, there := Series{Title: "wanted", Sign: '^'}, Series{Title: "there", Sign: '='}
	for _, p := range m.History {
		if p.Seen != nil {
			seen.add(p.At, *p.Seen)
		}
		if p.Answered != nil {
			answered.add(p.At, *p.Answered)
		}
		if p.Wanted > 0 {
			wanted.add(p.At, float64(p.Wanted))
		}
		if p.Replicas > 0 {
			there.add(p.At, float64(p.Replicas))
		}
	}
	lines := []string{"value: " + legend(seen, answered)}
	lines = append(lines, Plot(width, height, seen, answered)...)
	lines = append(lines, "replicas: "+legend(wanted, there))
	return append(lines, Plot(width, height, there, wanted)...)
}

func (s *Series) add(at time.Time, v float64) {
	s.Times, s.Values = append(s.Times, at), append(s.Values, v)
}

func legend(all ...Series) string {
	var parts []string
	for _, s := range all {
		parts = append(parts, string(s.Sign)+" "+s.Title)
	}
	return strings.Join(parts, ", ")
}

// labelWidth is what the labels of a plot's left side take.
const labelWidth = 9

// Plot draws series in signs, from 0 or the lowest value below it to the highest, in so many
// columns and rows; the newest is at the right. A later series is drawn over an earlier one.
func Plot(width, height int, all ...Series) []string {
	width, height = max(width-labelWidth-1, 10), max(height, 2)
	var from, to time.Time
	low, high := 0.0, 0.0
	for _, s := range all {
		for i, v := range s.Values {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				continue
			}
			low, high = min(low, v), max(high, v)
			if at := s.Times[i]; from.IsZero() || at.Before(from) {
				from = at
			}
			if at := s.Times[i]; at.After(to) {
				to = at
			}
		}
	}
	if from.IsZero() {
		return []string{"  nothing to draw"}
	}
	if high == low {
		high = low + 1
	}
	grid := make([][]rune, height)
	for r := range grid {
		grid[r] = []rune(strings.Repeat(" ", width))
	}
	span := max(to.Sub(from).Seconds(), 1)
	for _, s := range all {
		for i, v := range s.Values {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				continue
			}
			column := int(s.Times[i].Sub(from).Seconds() / span * float64(width-1))
			row := height - 1 - int(math.Round((v-low)/(high-low)*float64(height-1)))
			grid[min(max(row, 0), height-1)][min(max(column, 0), width-1)] = s.Sign
		}
	}
	lines := make([]string, 0, height+1)
	for r, row := range grid {
		label := ""
		switch r {
		case 0:
			label = number(high)
		case height - 1:
			label = number(low)
		}
		lines = append(lines, strings.TrimRight(fmt.Sprintf("%*s|%s", labelWidth, label, string(row)), " "))
	}
	ago := "-" + age(to.Sub(from))
	return append(lines, strings.Repeat(" ", labelWidth+1)+ago+strings.Repeat(" ", max(1, width-len(ago)-len("now")))+"now")
}
