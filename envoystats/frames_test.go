package envoystats

import (
	"fmt"
	"slices"
	"testing"
)

// frame is one of a connection's.
type frame struct {
	kind, flags byte
	stream      uint32
	body        []byte
}

// framesOf is what a client sends, its preface first.
func framesOf(frames ...frame) []byte {
	b := []byte(clientPreface)
	for _, f := range frames {
		n := len(f.body)
		b = append(b, byte(n>>16), byte(n>>8), byte(n), f.kind, f.flags, 0, 0, byte(f.stream>>8), byte(f.stream))
		b = append(b, f.body...)
	}
	return b
}

// body is a message of n bytes with its head; padded is what a padded frame holds.
func body(n int) []byte {
	return append([]byte{0, 0, byte(n >> 16), byte(n >> 8), byte(n)}, make([]byte, n)...)
}

func padded(n int, data []byte) []byte {
	return slices.Concat([]byte{byte(n)}, data, make([]byte, n))
}

// inPieces calls f with the bytes in pieces of several sizes.
func inPieces(b []byte, f func(step int, pieces [][]byte)) {
	for _, step := range []int{1, 2, 7, 9, 100, 8192, len(b)} {
		f(step, slices.Collect(slices.Chunk(b, step)))
	}
}

func TestWhatIsKeptOfMessagesIsFollowedThroughFrames(t *testing.T) {
	begin := func(stream uint32) frame { return frame{frameHeaders, endHeaders, stream, []byte("headers")} }
	data := func(stream uint32, b []byte) frame { return frame{frameData, 0, stream, b} }
	for name, c := range map[string]struct {
		frames        []frame
		payload, kept int64
		waiting       int // whole messages
		idle          int
		unfinished    bool
	}{
		"no data": {[]frame{begin(1), {4, 0, 0, make([]byte, 60)}, {8, 0, 0, make([]byte, 4)}, {6, 0, 0, make([]byte, 8)}}, 0, 0, 0, 4, false},
		"a message in one frame": {
			[]frame{begin(1), data(1, body(700))}, 705, keeps(705), 1, 1, false,
		},
		"a message in many frames": {
			[]frame{begin(1), data(1, body(30_000)[:2]), data(1, body(30_000)[2:16_000]), {8, 0, 0, make([]byte, 4)}, data(1, body(30_000)[16_000:])},
			30_005, keeps(2) + keeps(15_998) + keeps(14_005), 1, 3, false,
		},
		"messages in one frame, one of them empty, and part of another": {
			[]frame{begin(1), data(1, slices.Concat(body(3), body(0), body(300), body(900)[:100]))}, 418, keeps(418), 3, 1, true,
		},
		"two streams in turns": {
			[]frame{begin(1), begin(3), data(1, body(300)[:100]), data(3, body(200)[:150]), data(1, body(300)[100:]), data(3, body(200)[150:])},
			510, keeps(100) + keeps(150) + keeps(205) + keeps(55), 2, 2, false,
		},
		"padding is not kept, and what follows it is": {
			[]frame{
				begin(1),
				{frameData, flagPadded, 1, padded(200, body(300)[:100])},
				{frameData, flagPadded, 1, padded(255, nil)},
				{frameData, flagPadded, 1, padded(0, body(300)[100:])},
			},
			305, keeps(301) + keeps(206), 1, 2, false,
		},
		"padding alone":                 {[]frame{begin(1), {frameData, flagPadded, 1, padded(255, nil)}, {frameData, flagPadded, 1, nil}, {frameData, flagPadded, 1, []byte{9}}}, 0, 0, 0, 4, false},
		"a stream that was never begun": {[]frame{begin(1), data(3, body(300)), data(2, body(300))}, 0, 0, 0, 3, false},
		"a stream that was begun twice, or late": {
			[]frame{begin(3), begin(3), begin(1), data(1, body(300)), data(3, body(300)[:100])}, 100, keeps(100), 0, 4, true,
		},
		"a stream that was reset": {
			[]frame{begin(1), data(1, body(300)), data(1, body(300)[:100]), {frameReset, 0, 1, make([]byte, 4)}, data(1, body(300)[100:])}, 0, 0, 0, 3, false,
		},
		"one of two was reset": {
			[]frame{begin(1), begin(3), data(1, body(300)[:100]), data(3, body(300)[:100]), {frameReset, 0, 1, make([]byte, 4)}}, 100, keeps(100), 0, 3, true,
		},
		"a stream that its sender has ended: what is whole is taken": {
			[]frame{begin(1), data(1, body(300)), {frameData, flagEnd, 1, body(300)[:100]}, data(1, body(300))}, 305, (keeps(305) + keeps(100)) * 305 / 405, 1, 2, false,
		},
		"ended with trailers": {
			[]frame{begin(1), data(1, body(300)), {frameHeaders, flagEnd | endHeaders, 1, nil}, data(1, body(300))}, 305, keeps(305), 1, 3, false,
		},
		"a frame that has only its head": {[]frame{begin(1), data(1, body(2000)[:1000])}[:2], 1000, keeps(1000), 0, 1, true},
		"empty data":                     {[]frame{begin(1), data(1, nil), data(1, nil)}, 0, 0, 0, 3, false},
	} {
		inPieces(framesOf(c.frames...), func(step int, pieces [][]byte) {
			f := frames{left: len(clientPreface)}
			for _, p := range pieces {
				f.read(p, 7)
			}
			_, unfinished := f.oldest()
			if f.payload != c.payload || f.kept < c.kept || f.kept > c.kept+1 || f.waiting != c.waiting || f.idle != c.idle+1 || unfinished != c.unfinished {
				t.Errorf("%s, in pieces of %d: %d bytes, %d kept, %d whole, %d idle, unfinished %v; want %d, %d, %d, %d (and the preface), %v", name, step,
					f.payload, f.kept, f.waiting, f.idle, unfinished, c.payload, c.kept, c.waiting, c.idle, c.unfinished)
			}
		})
	}
}

// What a frame takes is known with its head, and given back when its stream ends before it has
// come.
func TestAFrameIsKeptFromItsHeadOn(t *testing.T) {
	b := framesOf(frame{frameHeaders, endHeaders, 1, nil}, frame{frameData, 0, 1, body(9000)})
	f := frames{left: len(clientPreface)}
	f.read(b[:len(b)-5000], 0)
	if f.payload != 9005 || f.kept != keeps(9005) {
		t.Errorf("%d bytes, %d kept", f.payload, f.kept)
	}
	f.end(1)
	f.read(b[len(b)-5000:], 0)
	if f.payload != 0 || f.kept != 0 || f.waiting != 0 {
		t.Errorf("after its end: %d bytes, %d kept, %d whole", f.payload, f.kept, f.waiting)
	}
}

func TestMessagesOfTinyFramesCountWhatGRPCKeepsForThem(t *testing.T) {
	const n = 1000
	frames := []frame{{frameHeaders, endHeaders, 1, nil}}
	for _, b := range body(n) {
		frames = append(frames, frame{frameData, 0, 1, []byte{b}})
	}
	f := follow(framesOf(frames...))
	if f.kept < n*frameCost {
		t.Errorf("%d bytes are kept of %d frames", f.kept, n)
	}
	if f.idle < n {
		t.Errorf("%d frames are idle of %d", f.idle, n)
	}
	f.taken(n)
	if f.kept != 0 || f.payload != 0 {
		t.Errorf("%d of %d bytes are kept when it was taken", f.kept, f.payload)
	}
}

func follow(b []byte) *frames {
	f := &frames{left: len(clientPreface)}
	f.read(b, 0)
	return f
}

func TestWhatIsTakenIsNotKept(t *testing.T) {
	f := follow(framesOf(frame{frameHeaders, endHeaders, 1, nil}, frame{frameData, 0, 1, slices.Concat(body(300), body(600))}, frame{frameData, 0, 1, body(5000)[:2000]}))
	all := f.kept
	f.taken(300)
	if f.payload != 605+2000 || f.kept <= all*8/10 || f.kept >= all || f.waiting != 1 {
		t.Errorf("%d bytes, %d kept of %d, %d whole", f.payload, f.kept, all, f.waiting)
	}
	f.taken(600)
	if f.payload != 2000 || f.waiting != 0 {
		t.Errorf("%d bytes, %d whole", f.payload, f.waiting)
	}
	f.end(1)
	if f.payload != 0 || f.kept != 0 {
		t.Errorf("%d bytes, %d kept", f.payload, f.kept)
	}
}

// A reader that waits for its handler must have given it the whole message: gRPC hands over frames,
// not bytes.
func TestAMessageEndsWithItsFrame(t *testing.T) {
	b := framesOf(frame{frameHeaders, endHeaders, 1, nil}, frame{frameData, 0, 1, append(body(1), 0, 0, 0)}) // a message, and the beginning of the next
	f := follow(b[:len(b)-1])
	if f.waiting != 0 {
		t.Errorf("%d messages in a frame that is not whole", f.waiting)
	}
	if f.read(b[len(b)-1:], 0); f.waiting != 1 {
		t.Errorf("%d messages with the frame's end, want 1", f.waiting)
	}
}

func TestAMessageIsAsOldAsItsFirstByte(t *testing.T) {
	f := follow(framesOf(frame{frameHeaders, endHeaders, 1, nil}, frame{frameHeaders, endHeaders, 3, nil}))
	next := func(stream uint32, b []byte, now int64) {
		f.read(framesOf(frame{frameData, 0, stream, b})[len(clientPreface):], now)
	}
	next(3, body(100)[:50], 5)
	next(1, body(100)[:50], 6)
	for now := range int64(3) {
		next(1, body(100)[50:], 7+now) // ends one, begins another
		next(1, body(100)[:50], 7+now)
	}
	if since, ok := f.oldest(); !ok || since != 5 {
		t.Errorf("the oldest is of %d, %v; want 5", since, ok)
	}
	next(3, body(100)[50:], 10)
	if since, ok := f.oldest(); !ok || since != 9 {
		t.Errorf("the oldest is of %d, %v; want 9", since, ok)
	}
}

func TestStreamsThatTheSinkEndsAreSeenInWhatItWrites(t *testing.T) {
	b := framesOf(
		frame{4, 0, 0, make([]byte, 18)},
		frame{frameHeaders, endHeaders, 1, []byte("headers")},
		frame{frameHeaders, endHeaders | flagEnd, 1, []byte("trailers")},
		frame{frameData, flagEnd, 9, nil},
		frame{8, 0, 3, make([]byte, 4)},
		frame{frameReset, 0, 259, make([]byte, 4)},
	)[len(clientPreface):]
	inPieces(b, func(step int, pieces [][]byte) {
		var e endings
		var got []uint32
		for _, p := range pieces {
			e.read(p, func(id uint32) { got = append(got, id) })
		}
		if !slices.Equal(got, []uint32{1, 259}) {
			t.Errorf("in pieces of %d: %v", step, got)
		}
	})
}

// Whatever comes in, in whatever pieces, sums stay sums: what is kept is what frames have announced
// and nobody has taken.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{}, uint8(1), uint16(0))
	f.Add(framesOf(frame{frameHeaders, 4, 1, nil}, frame{frameData, 0, 1, body(20)}, frame{frameData, flagPadded, 1, padded(3, body(9))})[24:], uint8(3), uint16(20))
	f.Add(framesOf(frame{frameHeaders, 4, 1, nil}, frame{frameData, 0, 1, body(90)[:20]}, frame{frameReset, 0, 1, body(0)})[24:], uint8(9), uint16(90))
	f.Fuzz(func(t *testing.T, b []byte, step uint8, taken uint16) {
		whole, pieces := frames{}, frames{}
		whole.read(b, 0)
		for piece := range slices.Chunk(b, int(step)+1) {
			pieces.read(piece, 0)
		}
		sums := func(f *frames) string {
			return fmt.Sprint(f.payload, f.kept, f.waiting, f.idle, len(f.streams))
		}
		if got, want := sums(&pieces), sums(&whole); got != want {
			t.Fatalf("in pieces of %d: %s, in one %s", int(step)+1, got, want)
		}
		whole.taken(int(taken))
		for id := range whole.streams {
			whole.end(id)
		}
		if whole.payload < 0 || whole.kept < 0 || (whole.payload == 0) != (whole.kept == 0) {
			t.Fatalf("%d bytes, %d kept", whole.payload, whole.kept)
		}
	})
}
