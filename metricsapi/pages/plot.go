package pages

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// plot is drawn by the template of that name: SVG whose colours are the page's, by classes. The
// libraries that draw plots bring fonts, which a process that serves would have in memory as well
// (gonum.org/v1/plot: 9 MiB), and styles within the SVG, which the page's policy forbids.
type plot struct {
	Title string
	// Width and Height are those of all, Left and Top of where the lines are, in units of the SVG.
	Width, Height, Left, Top, Right, Bottom float64

	X, Y  []tick
	Lines []line
	Bands []band
	Marks []mark

	from, to  time.Time
	low, high float64
}

// tick is a value at an axis.
type tick struct {
	At   float64
	Text string
}

// line is values over time; Last is the newest, as a text.
type line struct{ Class, Name, Path, Last string }

// band is a time in which something was so, such as that answers were held.
type band struct {
	Class, Title string
	X, Width     float64
}

// mark is an instant at which something was done.
type mark struct {
	Title string
	X     float64
}

// point is a value, NaN where there was none.
type point struct {
	at time.Time
	v  float64
}

// The sizes of a plot, in units of which a phone shows 480 beside each other.
const (
	plotWidth, plotHeight = 480, 170
	plotLeft, plotRight   = 46, 10
	plotTop, plotBottom   = 14, 22
	// gap is how far two points may lie apart to be drawn as one line: four syncs of the
	// controller.
	gap = time.Minute
)

// newPlot is an empty one from an instant to another, of values from 0 or the lowest below it to
// the highest.
func newPlot(title string, from, to time.Time, all ...[]point) *plot {
	p := &plot{Title: title, Width: plotWidth, Height: plotHeight, Left: plotLeft, Top: plotTop, Right: plotWidth - plotRight, Bottom: plotHeight - plotBottom, from: from, to: to}
	for _, points := range all {
		for _, q := range points {
			if !math.IsNaN(q.v) && !math.IsInf(q.v, 0) {
				p.low, p.high = min(p.low, q.v), max(p.high, q.v)
			}
		}
	}
	p.Y = p.levels()
	p.X = p.times()
	return p
}

// levels are the ticks of the left axis: multiples of 1, 2 or 5 times a power of ten, four or so,
// over all values. The axis ends with the last.
func (p *plot) levels() (ticks []tick) {
	if p.high == p.low {
		p.high = p.low + 1
	}
	const wanted = 4
	step := math.Pow(10, math.Floor(math.Log10((p.high-p.low)/wanted)))
	for _, by := range []float64{1, 2, 5, 10} {
		if (p.high-p.low)/(step*by) <= wanted {
			step *= by
			break
		}
	}
	if !(step > 0) || math.IsInf(step, 0) { // the values are beyond what can be told apart
		return nil
	}
	first, last := math.Floor(p.low/step), math.Ceil(p.high/step)
	p.low, p.high = first*step, last*step
	for i := first; i <= last && len(ticks) <= 2*wanted; i++ {
		ticks = append(ticks, tick{p.y(i * step), strconv.FormatFloat(i*step, 'g', 4, 64)})
	}
	return ticks
}

// times are the ticks of the lower axis, by how long ago they were.
func (p *plot) times() (ticks []tick) {
	step := time.Minute
	for _, step = range []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute} {
		if p.to.Sub(p.from) <= 6*step {
			break
		}
	}
	for ago := time.Duration(0); ago <= p.to.Sub(p.from) && len(ticks) < 10; ago += step {
		text := "now"
		if ago > 0 {
			text = fmt.Sprintf("-%dm", ago/time.Minute)
		}
		ticks = append(ticks, tick{p.x(p.to.Add(-ago)), text})
	}
	return ticks
}

func (p *plot) x(at time.Time) float64 {
	whole := max(p.to.Sub(p.from).Seconds(), 1)
	return p.Left + (p.Right-p.Left)*min(max(at.Sub(p.from).Seconds()/whole, 0), 1)
}

func (p *plot) y(v float64) float64 {
	return p.Bottom - (p.Bottom-p.Top)*part(v, p.low, p.high)
}

// part is where a value lies between two, 0 to 1, the largest numbers included.
func part(v, low, high float64) float64 { return min(max((v/2-low/2)/(high/2-low/2), 0), 1) }

// add draws points as a line that stays at a value until the next is known, with a gap where there
// was none.
func (p *plot) add(class, name string, points []point) {
	l := line{Class: class, Name: name, Last: "-"}
	var b strings.Builder
	var last point
	drawing := false
	for _, q := range points {
		if math.IsNaN(q.v) || math.IsInf(q.v, 0) || q.at.Before(p.from) {
			drawing = false
			continue
		}
		if drawing && q.at.Sub(last.at) <= gap {
			fmt.Fprintf(&b, "H%.1fV%.1f", p.x(q.at), p.y(q.v))
		} else {
			fmt.Fprintf(&b, "M%.1f %.1fh.1", p.x(q.at), p.y(q.v))
		}
		drawing, last = true, q
	}
	if drawing && p.to.Sub(last.at) <= gap {
		fmt.Fprintf(&b, "H%.1f", p.x(p.to))
		l.Last = strconv.FormatFloat(last.v, 'g', 4, 64)
	}
	l.Path = b.String()
	p.Lines = append(p.Lines, l)
}

// during marks a time.
func (p *plot) during(class, title string, from, to time.Time) {
	x := p.x(from)
	p.Bands = append(p.Bands, band{Class: class, Title: title, X: x, Width: max(p.x(to)-x, 1)})
}

// done marks an instant.
func (p *plot) done(title string, at time.Time) {
	p.Marks = append(p.Marks, mark{Title: title, X: p.x(at)})
}

// Inner is the height of where the lines are.
func (p *plot) Inner() float64 { return p.Bottom - p.Top }

// Before is where the texts at the left axis end.
func (p *plot) Before() float64 { return p.Left - 5 }
