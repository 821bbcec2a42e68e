package surge

// bins hold counts by time: a ring of bins of one width on our clock. What a row counts is spread
// evenly over the time that it covers, so a sum over any interval is good to a part of one bin.
type bins struct {
	width  int64     // milliseconds
	head   int64     // number of the newest bin; bin n covers [n*width, (n+1)*width)
	newest int64     // until which anything was counted: the newest bin is filled up to there
	counts []float64 // bin n at n mod len
	blocks []float64 // sums of blockBins bins each
}

// blockBins is near the root of how many bins five minutes have (480), so that a sum adds few.
const blockBins = 16

// newBins returns bins that reach back over the given time, in milliseconds.
func newBins(width, reach int64) bins {
	blocks := (reach/width + 2*blockBins) / blockBins
	return bins{width: width, counts: make([]float64, blocks*blockBins), blocks: make([]float64, blocks)}
}

// copyFrom makes b equal to o, in its own memory.
func (b *bins) copyFrom(o *bins) {
	b.width, b.head, b.newest = o.width, o.head, o.newest
	b.counts = append(b.counts[:0], o.counts...)
	b.blocks = append(b.blocks[:0], o.blocks...)
}

func (b *bins) slot(bin int64) int64 { return bin % int64(len(b.counts)) }

// advance makes bins up to the one that holds the time.
func (b *bins) advance(time int64) {
	bin := time / b.width
	if bin-b.head >= int64(len(b.counts)) {
		clear(b.counts)
		clear(b.blocks)
		b.head = bin
		return
	}
	for b.head < bin {
		b.head++
		i := b.slot(b.head)
		b.blocks[i/blockBins] -= b.counts[i]
		b.counts[i] = 0
		if i%blockBins == blockBins-1 { // no rounding is left over from one lap to the next
			b.blocks[i/blockBins] = 0
			for _, c := range b.counts[i-blockBins+1 : i] {
				b.blocks[i/blockBins] += c
			}
		}
	}
}

// oldest returns the start of the oldest bin. No bin lies before 1970, whatever time the newest
// has.
func (b *bins) oldest() int64 { return max(0, b.head-int64(len(b.counts))+1+blockBins) * b.width }

// add spreads a count evenly over (from, to]. What lies before the oldest bin is dropped.
func (b *bins) add(from, to int64, count float64) {
	if count == 0 || to <= from {
		return
	}
	b.advance(to)
	b.newest = max(b.newest, to)
	per := count / float64(to-from)
	from = max(from, b.oldest())
	for from < to {
		bin := from / b.width
		end := min(to, (bin+1)*b.width)
		i := b.slot(bin)
		c := per * float64(end-from)
		b.counts[i] += c
		b.blocks[i/blockBins] += c
		from = end
	}
}

// sum returns the count in (from, to]; times beyond the newest bin count as nothing, times before
// the oldest too.
func (b *bins) sum(from, to int64) float64 {
	from, to = max(from, b.oldest()), min(to, b.newest)
	if to <= from {
		return 0
	}
	first, last := from/b.width, to/b.width
	if first == last {
		return b.part(first, from, to)
	}
	s := b.part(first, from, (first+1)*b.width) + b.part(last, last*b.width, to)
	for bin := first + 1; bin < last; {
		i := b.slot(bin)
		if i%blockBins == 0 && bin+blockBins <= last {
			s += b.blocks[i/blockBins]
			bin += blockBins
			continue
		}
		s += b.counts[i]
		bin++
	}
	return s
}

// part is what a bin holds of the time within it, evenly over what of it has been counted.
func (b *bins) part(bin, from, to int64) float64 {
	width := min(b.width, b.newest-bin*b.width)
	if to <= from || width <= 0 {
		return 0
	}
	return b.counts[b.slot(bin)] * min(1, float64(to-from)/float64(width))
}

// resized returns the same counts in bins of another width.
func (b *bins) resized(width, reach int64) bins {
	n := newBins(width, reach)
	n.head = b.head * b.width / width
	n.advance((b.head + 1) * b.width)
	for bin := b.oldest() / b.width; bin <= b.head; bin++ {
		n.add(bin*b.width, min((bin+1)*b.width, b.newest), b.counts[b.slot(bin)])
	}
	return n
}
