package envoystats

// seen is what a stream remembers from message to message: the keys of series whose name and labels
// have been checked, so that the check is paid once a series and not once a sample. It may forget:
// then the check is made again. Equal keys are equal bytes.
//
// It is a hash table of buckets of eight, one cache line each, and the keys of the last message in
// their order: a sidecar sends its series in the same order again and again, so the next key lies
// beside the one before. A stream owns one.
type seen struct {
	buckets [][8]uint64 // a power of two long
	order   []uint64
	at      int // where order has the next key

	// sizes: histograms of sizes have come. An Envoy that sends them sends all of them, for life
	// (histogram_emit_mode), so the summaries beside them are not read.
	sizes bool
	// istio: a counter of Istio's has been read.
	istio bool
}

// maxSeenBuckets bounds a stream's memory to 1 MiB: 131,072 keys.
const maxSeenBuckets = 1 << 14

// begin goes back to the first key of a message.
func (s *seen) begin() { s.at = 0 }

func (s *seen) has(key uint64) bool {
	at := s.at
	s.at++
	if at < len(s.order) && s.order[at] == key {
		return key != 0
	}
	if !s.inBuckets(key) {
		return false
	}
	if at < len(s.order) {
		s.order[at] = key
	}
	return true
}

func (s *seen) inBuckets(key uint64) bool {
	if len(s.buckets) == 0 {
		return false
	}
	for _, k := range &s.buckets[key&uint64(len(s.buckets)-1)] {
		if k == key {
			return key != 0 // 0 is an empty slot
		}
	}
	return false
}

// add remembers the key, in place of another one where its bucket is full.
func (s *seen) add(key uint64) {
	if len(s.buckets) == 0 {
		return
	}
	b := &s.buckets[key&uint64(len(s.buckets)-1)]
	slot := key >> 61
	for i, k := range b {
		if k == 0 {
			slot = uint64(i)
			break
		}
	}
	b[slot] = key
}

// fit makes room for a stream that sends n series, at half the load, where a full bucket is rare.
// Growing forgets.
func (s *seen) fit(n int) {
	size := max(len(s.buckets), 1)
	for size*4 < n && size < maxSeenBuckets {
		size *= 2
	}
	if size > len(s.buckets) {
		s.buckets = make([][8]uint64, size)
	}
	if n := min(n, 8*maxSeenBuckets); n > cap(s.order) {
		s.order = append(s.order, make([]uint64, n-len(s.order))...)
	}
	s.order = s.order[:cap(s.order)]
}
