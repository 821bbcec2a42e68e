package main

import (
	"math"
	"slices"
)

// recorded is what an Envoy keeps of durations: whole milliseconds, counted in bins of two significant digits (libcircllhist). Bin
// 0 is 0, the others begin at 1.0, 1.1 … 9.9, 10, 11 … 99, 100, 110 …
type recorded struct {
	bins  [1 + 90*8]float64
	count float64
	sum   float64 // of the whole milliseconds
	exact float64 // of the durations before they were cut to whole milliseconds
}

func (r *recorded) record(v float64) {
	r.count++
	r.exact += v
	v = math.Floor(v)
	r.sum += v
	r.bins[binOf(v)]++
}

func binOf(v float64) int {
	if v < 1 {
		return 0
	}
	exponent := 0
	for v >= 10 {
		v /= 10
		exponent++
	}
	return 1 + 90*exponent + int(v*10+1e-9) - 10
}

func (r *recorded) add(o *recorded) {
	for i := range r.bins {
		r.bins[i] += o.bins[i]
	}
	r.count, r.sum, r.exact = r.count+o.count, r.sum+o.sum, r.exact+o.exact
}

// edges returns where a bin begins and ends.
func edges(bin int) (from, to float64) {
	if bin == 0 {
		return 0, 0
	}
	bin--
	digits, unit := float64(bin%90+10), math.Pow10(bin/90)/10
	return digits * unit, (digits + 1) * unit
}

// at returns the bin of the request of rank ceil(q n), and its place there as Envoy's summary has it: k of m requests at k/(m+1).
func (r *recorded) at(q float64) (bin int, place float64) {
	rank, below := max(1, math.Ceil(q*r.count-1e-9)), 0.0
	for bin, n := range r.bins {
		if below+n >= rank {
			return bin, (rank - below) / (n + 1)
		}
		below += n
	}
	return 0, math.NaN()
}

// within is the interval that an answer is held in: within 5 % or 1 ms of [Q(q-0.01), Q(q+0.01)], for P99 within 10 % of
// [Q(0.985), Q(0.995)], each request standing for its bin.
func (r *recorded) within(q float64) (from, to float64) {
	margin := 0.01
	if q > 0.95 {
		margin = 0.005
	}
	lower, _ := r.at(q - margin)
	upper, _ := r.at(q + margin)
	from, _ = edges(lower)
	_, to = edges(upper)
	if q > 0.95 {
		return from * 0.9, to * 1.1
	}
	return min(from*0.95, from-1), max(to*1.05, to+1)
}

// bounded reports whether there are enough requests for a bound, and no gap of x to 1.3 x within one bucket of all pods whose
// rank is within 0.15 of q: there nothing on the wire tells on which side of it a request lies.
func (r *recorded) bounded(q float64, bounds []float64) bool {
	if r.count < 100 || q > 0.95 && r.count < 1000 {
		return false
	}
	below, last := 0.0, 0
	for bin, n := range r.bins {
		if n == 0 {
			continue
		}
		_, x := edges(last)
		y, _ := edges(bin)
		if below > 0 && math.Abs(below/r.count-q) <= 0.15 {
			for _, b := range append(slices.Clone(bounds), math.Inf(1)) {
				if to := min(y, b); x > 0 && to >= 1.3*x {
					return false
				}
				x = max(x, min(y, b))
			}
		}
		below, last = below+n, bin
	}
	return true
}

// off is how far an answer lies outside of an interval, as a share of the edge that it missed; 0 inside.
func off(v, from, to float64) float64 {
	switch {
	case v < from:
		return v/from - 1
	case v > to:
		return v/to - 1
	}
	return 0
}
