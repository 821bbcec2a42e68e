package envoystats

import "testing"

func TestSeenForgetsButNeverInvents(t *testing.T) {
	var s seen
	s.add(1) // no room yet
	if s.has(1) || s.has(0) {
		t.Error("an empty set has a key")
	}
	s.fit(1000)
	key := func(i uint64) uint64 { return i * 0x9e3779b97f4a7c15 }
	for i := range uint64(1000) {
		if s.has(key(i)) {
			t.Errorf("key %d was not added", i)
		}
		s.add(key(i))
		if i > 0 && !s.has(key(i)) { // 0 is never had
			t.Errorf("key %d was just added", i)
		}
	}
	kept := 0
	for i := range uint64(1000) {
		if s.has(key(i)) {
			kept++
		}
	}
	if kept < 990 {
		t.Errorf("%d of 1000 keys are remembered at the load that fit is for, want nearly all", kept)
	}
	s.fit(1 << 30)
	if len(s.buckets) != maxSeenBuckets {
		t.Errorf("%d buckets, want the bound", len(s.buckets))
	}
}
