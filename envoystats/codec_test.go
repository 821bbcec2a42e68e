package envoystats

import "testing"

func TestTheScratchOfALargeMessageIsNotKept(t *testing.T) {
	p := newScans(Config{}.withDefaults().rules())
	for size, kept := range map[int]bool{maxPooledMessage: true, maxPooledMessage + 1: false, 64 << 20: false} {
		again := 0
		for range 10 { // the pool may drop what it is given
			s := newScratch(p.rules)
			s.buf = make([]byte, 0, size)
			p.put(s)
			if cap(p.get().buf) >= size {
				again++
			}
		}
		if (again > 0) != kept {
			t.Errorf("%d bytes: lent again %d times of 10", size, again)
		}
	}
}
