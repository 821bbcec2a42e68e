package aggregator

import runtimemetrics "runtime/metrics"

// heapInUse is what the collector found alive when it last ran, in bytes. Near GOMEMLIMIT it runs often, and every two minutes in
// any case.
func heapInUse() uint64 {
	sample := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(sample)
	return sample[0].Value.Uint64()
}

// watchMemory compares the live heap with the budget. It is the process' and not only the store's: what streams and answers hold
// leaves less for series. A twentieth less than the budget ends the refusing, so that it does not begin and end with each cycle.
func (s *Store) watchMemory() {
	budget := uint64(s.config.MemoryBudget)
	if budget == 0 {
		return
	}
	if s.full.Load() {
		budget -= budget / 20
	}
	s.full.Store(s.liveHeap() > budget)
}
