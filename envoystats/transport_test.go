package envoystats

import "testing"

func TestFramesAreLentWhatTheyNeedAndNoMore(t *testing.T) {
	p := &framePool{}
	for _, c := range []struct {
		name             string
		length, capacity int
	}{
		{"a short frame", 1 << 10, smallFrame},
		{"a quarter of a frame", smallFrame, smallFrame},
		{"the last frame of a flush", smallFrame + 1, fullFrame},
		{"a full frame", fullFrame, fullFrame},
		{"a message that was sent compressed", fullFrame + 1, fullFrame + 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 3 { // lent anew, then again
				b := p.Get(c.length)
				if len(*b) != c.length || cap(*b) < c.capacity || cap(*b) > 2*c.capacity {
					t.Fatalf("%d of %d bytes, want %d of %d", len(*b), cap(*b), c.length, c.capacity)
				}
				*b = (*b)[:1] // gRPC gives back a prefix
				p.Put(b)
			}
		})
	}
}
