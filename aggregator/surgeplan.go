package aggregator

import (
	"slices"
	"strings"

	"github.com/meshpulse/meshpulse/aggregator/internal/surge"
	"github.com/prometheus/prometheus/promql/parser"
)

// surgePlan is how an expression is evaluated over an interval of rows, and which of its counts
// trigger.
type surgePlan struct {
	// terms are the sums of counts that go in, each once.
	terms []surgeTerm
	// trigger are the weights with which terms add up to what is tested, in counts per second.
	trigger []float64
	// value gives the expression from the terms' rates per second.
	value func(rates []float64) float64
	// unkept is what the expression names of metrics that are not kept for whoever asks.
	unkept []unkept
	// inFlight: what is served is time, not counts.
	inFlight bool
}

// series is how many series of counts the fold keeps: what is tested, and the terms where they are
// something else.
func (p *surgePlan) series() int {
	if p.plain() {
		return 1
	}
	return 1 + len(p.terms)
}

// plain reports whether what is tested is the one term.
func (p *surgePlan) plain() bool { return len(p.terms) == 1 && p.trigger[0] == 1 }

// addTo adds what a term counted to a row's series.
func (p *surgePlan) addTo(series []float64, term int, n float64) {
	series[0] += p.trigger[term] * n
	if !p.plain() {
		series[1+term] += n
	}
}

// over evaluates the expression over an interval: its value, and the rate of what is tested.
func (p *surgePlan) over(counts *surge.Detector, from, to int64) (value, rate float64) {
	seconds := float64(to-from) / 1000
	rates := make([]float64, p.series())
	for i := range rates {
		rates[i] = counts.Count(i, from, to) / seconds
	}
	if p.plain() {
		return p.value(rates), rates[0]
	}
	return p.value(rates[1:]), rates[0]
}

// surgeTerm is sum(rate(selector[…])). counted: of a histogram's sum its count is meant.
type surgeTerm struct {
	sel     *selector
	counted bool
}

// surgeOf returns how a surge of a compiled expression is told, nil where nothing in it can be
// tested.
func surgeOf(of plan) *surgePlan {
	p := &surgePlan{}
	value, weights, ok := p.part(of)
	if !ok || weights == nil {
		return nil
	}
	p.value = value
	for len(weights) < len(p.terms) {
		weights = append(weights, 0)
	}
	p.trigger = weights
	return p
}

// part returns how a part follows from the rates, and the weights of what in it is tested, nil for
// a number.
func (p *surgePlan) part(of plan) (value func(rates []float64) float64, weights []float64, ok bool) {
	switch of := of.(type) {
	case constant:
		return func([]float64) float64 { return float64(of) }, nil, true
	case *aggregation:
		return p.sum(of)
	case *orElse: // what stands in where there is nothing does not surge
		return p.part(of.of)
	case *binary:
		return p.arithmetic(of)
	}
	return nil, nil, false
}

// sum is sum(rate(counts[…])).
func (p *surgePlan) sum(of *aggregation) (func([]float64) float64, []float64, bool) {
	if of.op != parser.SUM || len(of.by) > 0 {
		return nil, nil, false
	}
	scale := 1.0
	if of.over.f == funcIncrease {
		scale = float64(of.over.reach) / 1000
	}
	tested, served, ok := countsOf(of.over.sel)
	if !ok {
		return nil, nil, false
	}
	i := p.term(served)
	value := func(rates []float64) float64 { return scale * rates[i] }
	weights := make([]float64, p.term(tested)+1)
	weights[len(weights)-1] = 1
	p.inFlight = p.inFlight || tested != served
	return value, weights, true
}

// countsOf returns what is tested and what is served for a selector, false if it selects no counts.
// A duration's sum is time: its count is tested in its place.
func countsOf(sel *selector) (tested, served surgeTerm, ok bool) {
	switch {
	case strings.HasSuffix(sel.name, "_requests_total"), strings.HasSuffix(sel.name, "_messages_total"),
		strings.HasSuffix(sel.name, suffixes[viewCount]):
		return surgeTerm{sel: sel}, surgeTerm{sel: sel}, true
	case sel.name == durationsName+suffixes[viewSum]:
		return surgeTerm{sel, true}, surgeTerm{sel: sel}, true
	}
	return tested, served, false
}

// term returns the term's place.
func (p *surgePlan) term(t surgeTerm) int {
	if i := slices.Index(p.terms, t); i >= 0 {
		return i
	}
	p.terms = append(p.terms, t)
	return len(p.terms) - 1
}

// arithmetic is sums and multiples of counts, and ratios, which trigger on their numerator.
func (p *surgePlan) arithmetic(of *binary) (func([]float64) float64, []float64, bool) {
	left, lw, lok := p.part(of.left)
	right, rw, rok := p.part(of.right)
	if !lok || !rok {
		return nil, nil, false
	}
	value := func(rates []float64) float64 { return of.apply(left(rates), right(rates)) }
	switch of.op {
	case parser.ADD:
		return value, addWeights(lw, rw), true
	case parser.MUL:
		if lw == nil || rw == nil {
			return value, addWeights(lw, rw), true
		}
	case parser.DIV:
		if lw != nil && (rw == nil || !p.inFlight) { // time over counts is a latency
			return value, lw, true
		}
	}
	return nil, nil, false
}

func addWeights(a, b []float64) []float64 {
	if len(a) < len(b) {
		a, b = b, a
	}
	for i, w := range b {
		a[i] = max(a[i], w)
	}
	return a
}
