package aggregator

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// What is kept is what a list of the newest keys says, whatever is kept again and forgotten in
// between.
func TestBoundedKeepsTheNewestKeys(t *testing.T) {
	const limit = 5
	var b bounded[int, int]
	var newest []int // oldest first
	r := rand.New(rand.NewPCG(1, 2))
	for step := range 10_000 {
		k := r.IntN(12)
		newest = slices.DeleteFunc(newest, func(o int) bool { return o == k })
		if r.IntN(3) == 0 {
			b.forget(k)
		} else {
			newest = append(newest, k)
			gaveUp := len(newest) > limit
			if b.keep(k, step, limit) != gaveUp {
				t.Fatalf("step %d: given up %v, want %v", step, !gaveUp, gaveUp)
			}
			newest = newest[max(0, len(newest)-limit):]
			if v, ok := b.get(k); !ok || v != step {
				t.Fatalf("step %d: the newest is %d, %v", step, v, ok)
			}
		}
		for k := range 12 {
			if _, ok := b.get(k); ok != slices.Contains(newest, k) {
				t.Fatalf("step %d: key %d there: %v; the newest are %v", step, k, ok, newest)
			}
		}
		if len(b.order) > 2*limit+16 {
			t.Fatalf("step %d: %d places for %d keys", step, len(b.order), len(b.values))
		}
	}
}
