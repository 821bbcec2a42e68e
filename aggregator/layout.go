package aggregator

import (
	"math"
	"slices"
	"strconv"
	"sync"

	"github.com/meshpulse/meshpulse/aggregator/internal/fine"
)

// layout is a histogram's buckets: shared by all series that have the same, which is nearly all of
// a mesh.
type layout struct {
	bounds []float64 // upper bounds without +Inf, ascending
	le     []string  // as Envoy's Prometheus exposition writes them, "+Inf" last
	// ends are where each bucket ends, in cells: since Envoy 1.38 another cell than before
	// (fine.CellsBelow), so there are two.
	inclusive, exclusive []uint16
}

func newLayout(bounds []float64) *layout {
	l := &layout{bounds: bounds}
	for _, b := range bounds {
		l.le = append(l.le, formatBound(b))
		l.inclusive = append(l.inclusive, fine.CellsBelow(b, true))
		l.exclusive = append(l.exclusive, fine.CellsBelow(b, false))
	}
	l.le = append(l.le, formatBound(math.Inf(1)))
	return l
}

// ends returns where the buckets end in histograms of a pod.
func (l *layout) ends(p *Pod) []uint16 {
	if p.InclusiveBounds {
		return l.inclusive
	}
	return l.exclusive
}

// layouts interns layouts. Beyond maxLayouts, which no mesh has, they are not shared any more.
type layouts struct {
	mu    sync.Mutex
	known []*layout
}

const maxLayouts = 256

func (ls *layouts) of(buckets []Bucket) *layout {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.known {
		if l.holds(buckets) {
			return l
		}
	}
	bounds := make([]float64, len(buckets))
	for i := range buckets {
		bounds[i] = buckets[i].UpperBound
	}
	l := newLayout(slices.Clip(bounds))
	if len(ls.known) < maxLayouts {
		ls.known = append(ls.known, l)
	}
	return l
}

// holds reports whether an interval's buckets are the layout's.
func (l *layout) holds(buckets []Bucket) bool {
	if len(buckets) != len(l.bounds) {
		return false
	}
	for i := range buckets {
		if buckets[i].UpperBound != l.bounds[i] {
			return false
		}
	}
	return true
}

// formatBound writes an upper bound as Envoy's Prometheus exposition does.
func formatBound(v float64) string {
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	return strconv.FormatFloat(v, 'f', -1, 64)
}
