package hpas

import "slices"

// Where another adapter serves beside meshpulse, each metric is one's or the other's. Whose it is
// follows from what is written, of the HPA, its namespace and the settings: from nothing that
// sidecars send, so it does not change while a mesh starts, or goes away.

// Serve is the annotation of an HPA, or of a namespace for those in it that have none, that says
// whether meshpulse answers: "true" or "false".
const Serve = ownPrefix + "serve"

// Serving is what holds for HPAs that do not say themselves whether they are served.
type Serving struct {
	// OptIn: only those are that say so, or whose namespace does (--serve-by=opt-in).
	OptIn bool
	// Namespace returns a namespace's annotation [Serve], "" where it has none; nil: none has.
	Namespace func(name string) string
}

// Serves says whether an HPA's metrics are answered here: by its annotation, else its namespace's,
// else by default. A value that is neither counts as none.
func (s Serving) Serves(h HPA) bool {
	written := []string{h.Annotations[Serve]}
	if s.Namespace != nil {
		written = append(written, s.Namespace(h.Namespace))
	}
	for _, value := range written {
		switch value {
		case "true":
			return true
		case "false":
			return false
		}
	}
	return !s.OptIn || h.Scaled != nil // which names meshpulse itself
}

// Ours says whether a metric is meshpulse's where another adapter has the rest: its expression
// names metrics that ingest keeps, and no other. Without an expression, or with one that is no
// PromQL, it is somebody else's.
func (w Metric) Ours(words Vocabulary) bool {
	e := w.expression()
	if e.Tree == nil {
		return false
	}
	for _, p := range e.Parts {
		if !words.keepsAll(p) {
			return false
		}
	}
	return true
}

// expression is what the metric's text says, parsed once.
func (w Metric) expression() Expression {
	if w.parsed.Text == w.Expr {
		return w.parsed
	}
	return Parse(w.Expr)
}

// Own is what remains of the wants where only some metrics are answered here, with what is to be
// told of those. The others are left out.
func (a *Wants) Own(isOurs func(Metric) bool) (own *Wants, others []Metric) {
	own = &Wants{HPA: a.HPA, Unserved: a.Unserved, Surge: a.Surge, words: a.words}
	said := map[Problem]bool{} // of the others alone
	for _, w := range a.Metrics {
		if !isOurs(w) {
			others = append(others, w)
			for _, p := range w.problems {
				said[p] = true
			}
		}
	}
	if len(others) == 0 {
		return a, nil
	}
	for _, w := range a.Metrics {
		if isOurs(w) {
			own.Metrics = append(own.Metrics, w)
			for _, p := range w.problems {
				delete(said, p)
			}
		}
	}
	for _, p := range a.Problems {
		if !said[p] {
			own.Problems = append(own.Problems, p)
		}
	}
	return own, others
}

// None is what remains of the wants where the HPA is not served: which metrics it asks for, and
// nothing to tell of them.
func (a *Wants) None() (own *Wants, others []Metric) {
	return &Wants{HPA: a.HPA, words: a.words}, a.Metrics
}

// OfMesh says whether every metric that is named is one of Istio's, or one that somebody asked by
// its name to be kept: who keeps all has named none.
func (e Expression) OfMesh(words Vocabulary) bool {
	return e.Tree != nil && !slices.ContainsFunc(e.Parts, func(p Part) bool {
		names := p.names()
		return len(names) == 0 || slices.ContainsFunc(names, func(name string) bool { return !words.ofMesh(name) })
	})
}

// keepsAll says whether ingest keeps every metric that a selector names. One that names none names
// others' too.
func (v Vocabulary) keepsAll(p Part) bool {
	names := p.names()
	return len(names) > 0 && !slices.ContainsFunc(names, func(name string) bool {
		return v.Keeps != nil && !v.Keeps(name) && !v.Keeps(baseOf(name))
	})
}
