package pages

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// status is what the status line says.
type status struct {
	Error string // "" where the source has answered
	At    string // as of when
	Text  string
}

// cell is one of a table's: its text, and the class by which it goes where the page is narrow.
type cell struct{ Text, Class string }

// row is a metric's line in the table.
type row struct {
	ID, Link, Kind string
	Cells          []cell
	What           string // is wrong
}

// failed is what is shown when the source fails: what was known before, and why nothing is newer.
func (p *Pages) failed(last *view, err error) *view {
	v := newView()
	if last != nil {
		v.order = last.order
		for id, html := range last.pieces {
			v.pieces[id] = html
		}
	}
	v.pieces[statusID] = p.draw(statusID, status{Error: explain.Printable(err.Error()), At: clock(time.Now())})
	return v
}

// clock is a time of day, in UTC as everywhere in meshpulse.
func clock(at time.Time) string { return at.UTC().Format("15:04:05") + " UTC" }

// lookAtAll draws the table of all HPAs. A row that says what it said before is not drawn again.
func (p *Pages) lookAtAll() look {
	drawn := map[string]string{} // rows, by all that they say
	return func(ctx context.Context, last *view) *view {
		list, err := p.config.Source.List(ctx)
		if err != nil {
			return p.failed(last, err)
		}
		v := newView()
		columns, rows := explain.Rows(list.Items)
		before := drawn
		drawn = map[string]string{}
		for _, r := range rows {
			told := p.row(columns, r)
			key := fmt.Sprint(told)
			html, known := before[key]
			if !known {
				html = p.draw("row", told)
			}
			drawn[key] = html
			v.order, v.pieces[told.ID] = append(v.order, told.ID), html
		}
		v.pieces[statusID], v.pieces[columnsID] = p.draw(statusID, p.standing(list)), p.draw(columnsID, titles(columns))
		return v
	}
}

// standing says how many HPAs there are and what is wrong with how many.
func (p *Pages) standing(list explain.List) status {
	s := status{At: clock(time.Now())}
	kinds := map[explain.Kind]int{}
	well := 0
	for i := range list.Items {
		if e := &list.Items[i]; len(e.Troubles) == 0 {
			well++
		} else {
			kinds[e.Troubles[0].Kind]++
		}
	}
	s.Text = fmt.Sprintf("%d HPAs of %s, %d well", len(list.Items), p.config.Scope, well)
	for _, kind := range explain.Kinds() {
		if n := kinds[kind]; n > 0 {
			s.Text += fmt.Sprintf(", %d %s", n, words(kind))
		}
	}
	return s
}

// titles are the table's first line.
func titles(columns []explain.Column) (cells []cell) {
	for _, c := range columns {
		cells = append(cells, cell{strings.ToLower(c.Title), rank(c)})
	}
	return cells
}

// words are a kind of trouble's name as words: no answer for NoAnswer.
func words(kind explain.Kind) string {
	var b strings.Builder
	for i, r := range string(kind) {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte(' ')
		}
		b.WriteRune(r)
	}
	return strings.ToLower(b.String())
}

// rank is the class of a column that goes where there is no room for all.
func rank(c explain.Column) string {
	if c.Rank == 0 {
		return ""
	}
	return "rank" + strconv.Itoa(c.Rank)
}

func (p *Pages) row(columns []explain.Column, r explain.Row) row {
	told := row{
		ID:   fmt.Sprintf("%s/%s/%d", explain.Printable(r.Of.Namespace), explain.Printable(r.Of.Name), r.Place),
		Link: p.link(r.Of.Namespace, r.Of.Name), Kind: "well",
	}
	if len(r.Of.Troubles) > 0 {
		told.Kind, told.What = strings.ToLower(string(r.Of.Troubles[0].Kind)), explain.Printable(r.Of.Troubles[0].What)
	}
	for i, text := range r.Cells {
		class := rank(columns[i])
		switch columns[i].Title {
		case "AGE":
			text = roughly(r.Of.Metrics[r.Place].AgeSeconds)
		case "HPA":
			class = "name"
		case "STATE":
			class = "state"
		}
		told.Cells = append(told.Cells, cell{explain.Printable(text), class})
	}
	return told
}

// roughly is an age that does not change at each look, as long as flushes come.
func roughly(age *float64) string {
	switch {
	case age == nil:
		return "-"
	case *age <= 10:
		return "≤ 10s"
	case *age < 60:
		return fmt.Sprintf("%.0fs", math.Ceil(*age/5)*5)
	}
	return fmt.Sprintf("%.0fm", math.Ceil(*age/60))
}
