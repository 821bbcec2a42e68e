package envoystats

import (
	"slices"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	const rate = 10 * messageCost
	var p pace
	now := time.Unix(1000, 0)
	for i := range 50 {
		if d := p.spend(now, 0, rate); d != 0 {
			t.Fatalf("message %d waits %v within the burst", i, d)
		}
	}
	if d := p.spend(now, 0, rate); d != 100*time.Millisecond {
		t.Errorf("the message beyond waits %v, want what it costs", d)
	}
	now = now.Add(100 * time.Millisecond)
	if d := p.spend(now, 9*messageCost, rate); d != time.Second {
		t.Errorf("a large one waits %v, want 1s", d)
	}
	if d := p.spend(now.Add(-time.Hour), 0, rate); d != 1100*time.Millisecond {
		t.Errorf("after a step of the clock: %v, want 1.1s", d)
	}
	if d := p.spend(now.Add(24*time.Hour), 49*messageCost, rate); d != 0 {
		t.Errorf("after a day: %v, want no wait", d)
	}
	if d := p.spend(now.Add(24*time.Hour), 0, rate); d != 100*time.Millisecond {
		t.Errorf("credit beyond a burst was kept: %v", d)
	}
}

func TestFramesTellDataFromTheRest(t *testing.T) {
	b := framesOf(0xff, frame{4, nil}, frame{1, make([]byte, 50)}, frame{0, make([]byte, 5)}, frame{0, make([]byte, 70_000)},
		frame{8, make([]byte, 4)}, frame{0, nil}, frame{6, make([]byte, 8)}, frame{0, make([]byte, 1)})
	inPieces(b, func(step int, pieces [][]byte) {
		f, n := frames{left: len(clientPreface)}, 0
		for _, p := range pieces {
			data, _ := f.data(p)
			n += data
		}
		if n != 70_006 {
			t.Errorf("in pieces of %d: %d bytes of data, want 70006", step, n)
		}
	})
}

func TestFramesTellWhereMessagesEnd(t *testing.T) {
	message := func(n int) []byte {
		return append([]byte{0, 0, byte(n >> 16), byte(n >> 8), byte(n)}, make([]byte, n)...)
	}
	long := message(70_000)
	for name, c := range map[string]struct {
		flags  byte
		frames []frame
		want   int
	}{
		"one in many frames":                      {0, []frame{{1, nil}, {0, long[:2]}, {0, long[2:20_000]}, {8, make([]byte, 4)}, {0, long[20_000:]}}, 1},
		"some in one frame, one of them empty":    {0, []frame{{1, nil}, {0, slices.Concat(message(3), message(0), message(300))}}, 3},
		"the last is not whole":                   {0, []frame{{1, nil}, {0, slices.Concat(message(3), long)}, {0, long[:69_999]}}, 2},
		"a stream that ended amid one, and a new": {0, []frame{{1, nil}, {0, long[:100]}, {1, nil}, {0, message(10)}}, 1},
		"padded: not known":                       {flagPadded, []frame{{1, nil}, {0, message(10)}}, 0},
	} {
		inPieces(framesOf(c.flags, c.frames...), func(step int, pieces [][]byte) {
			f, n := frames{left: len(clientPreface)}, 0
			for _, p := range pieces {
				_, ended := f.data(p)
				n += ended
			}
			if n != c.want {
				t.Errorf("%s, in pieces of %d: %d messages, want %d", name, step, n, c.want)
			}
		})
	}
}

// A reader that waits for its handler must have given it the whole message: gRPC hands over frames, not bytes.
func TestAMessageEndsWithItsFrame(t *testing.T) {
	b := framesOf(0, frame{1, nil}, frame{0, append([]byte{0, 0, 0, 0, 1, 'x'}, 0, 0, 0)}) // a message, and the beginning of the next
	f := frames{left: len(clientPreface)}
	if _, ended := f.data(b[:len(b)-1]); ended != 0 {
		t.Errorf("%d messages in a frame that is not whole", ended)
	}
	if _, ended := f.data(b[len(b)-1:]); ended != 1 {
		t.Errorf("%d messages with the frame's end, want 1", ended)
	}
}

type frame struct {
	kind byte
	body []byte
}

func framesOf(flags byte, frames ...frame) []byte {
	b := []byte(clientPreface)
	for _, f := range frames {
		n := len(f.body)
		b = append(b, byte(n>>16), byte(n>>8), byte(n), f.kind, flags, 0, 0, 0, 1)
		b = append(b, f.body...)
	}
	return b
}

// inPieces calls f with the bytes in pieces of several sizes.
func inPieces(b []byte, f func(step int, pieces [][]byte)) {
	for _, step := range []int{1, 2, 7, 9, 100, 8192, len(b)} {
		f(step, slices.Collect(slices.Chunk(b, step)))
	}
}
