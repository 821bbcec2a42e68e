package pages

import (
	"context"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// lookAtOne draws the page of one HPA.
func (p *Pages) lookAtOne(namespace, name string) look {
	return func(ctx context.Context, last *view) *view {
		e, err := p.config.Source.One(ctx, namespace, name, 0)
		if err != nil {
			return p.failed(last, err)
		}
		v := newView()
		v.pieces[statusID] = p.draw(statusID, status{At: clock(time.Now()), Text: stands(&e)})
		add := func(id, template string, data any) {
			v.order, v.pieces[id] = append(v.order, id), p.draw(template, data)
		}
		add("troubles", "troubles", troubles(&e))
		add("text", "text", explain.PrintableLines(e.Text()))
		return v
	}
}

// stands says what the HPA's target has.
func stands(e *explain.Explanation) string {
	return explain.Printable(e.Target)
}

// trouble is one as the page shows it.
type trouble struct{ Kind, What, Cause, Remedy string }

func troubles(e *explain.Explanation) (all []trouble) {
	for _, t := range e.Troubles {
		all = append(all, trouble{strings.ToLower(string(t.Kind)), explain.Printable(t.What), explain.Printable(t.Cause), explain.Printable(t.Remedy)})
	}
	return all
}
