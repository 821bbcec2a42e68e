package aggregator

import (
	"math"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// fold is an aggregation in progress.
type fold struct{ v, compensation, n float64 }

func (f *fold) add(op parser.ItemType, values []float64) {
	switch op {
	case parser.SUM, parser.AVG:
		f.sum(values)
	case parser.MIN, parser.MAX:
		for i, v := range values {
			if f.n == 0 && i == 0 || op == parser.MIN && v < f.v || op == parser.MAX && v > f.v || math.IsNaN(f.v) {
				f.v = v
			}
		}
	}
	f.n += float64(len(values))
}

// sum is Neumaier's summation, as the engine does it.
func (f *fold) sum(values []float64) {
	sum, compensation := f.v, f.compensation
	for _, v := range values {
		t := sum + v
		if math.Abs(sum) >= math.Abs(v) {
			compensation += (sum - t) + v
		} else {
			compensation += (v - t) + sum
		}
		sum = t
	}
	f.v, f.compensation = sum, compensation
}

func (f *fold) result(op parser.ItemType) float64 {
	switch op {
	case parser.SUM:
		return f.v + f.compensation
	case parser.AVG:
		return (f.v + f.compensation) / f.n
	case parser.COUNT:
		return f.n
	}
	return f.v
}

// grouper keeps one accumulator a group of labels.
type grouper[T any] struct {
	single *T // of an aggregation without labels
	byKey  map[string]*T
	keys   []string
	key    []byte
}

// all returns the one group of an aggregation without labels.
func (g *grouper[T]) all() *T {
	if g.single == nil {
		g.single = new(T)
	}
	return g.single
}

// of returns the group of a series.
func (g *grouper[T]) of(by []string, c *class, p *Pod) *T {
	if len(by) == 0 {
		return g.all()
	}
	g.key = g.key[:0]
	for _, name := range by {
		g.key = append(g.key, groupLabel(name, c, p)...)
		g.key = append(g.key, 0xff) // in no UTF-8 text
	}
	if acc := g.byKey[string(g.key)]; acc != nil {
		return acc
	}
	if g.byKey == nil {
		g.byKey = map[string]*T{}
	}
	acc, key := new(T), string(g.key)
	g.byKey[key] = acc
	g.keys = append(g.keys, key)
	return acc
}

func groupLabel(name string, c *class, p *Pod) string {
	switch name {
	case labelNamespace:
		return p.Namespace
	case labelPod:
		return p.Name
	}
	return c.labels.get(name)
}

// values returns the groups with their labels.
func (g *grouper[T]) values(by []string, result func(*T) float64) []Value {
	if g.single != nil {
		return []Value{{V: result(g.single)}}
	}
	vs := make([]Value, 0, len(g.keys))
	for _, key := range g.keys {
		b := labels.NewScratchBuilder(len(by))
		i := 0
		for value := range strings.SplitSeq(key, "\xff") {
			if value != "" {
				b.Add(by[i], value)
			}
			i++
		}
		b.Sort()
		vs = append(vs, Value{b.Labels(), result(g.byKey[key])})
	}
	return vs
}
