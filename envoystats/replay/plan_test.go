package replay

import (
	"bytes"
	"math"
	"os"
	"testing"
	"time"
)

func TestMovedTimestampsStayApartAndInOrder(t *testing.T) {
	start := time.UnixMilli(1_800_000_000_000)
	for _, test := range []struct {
		name   string
		stamps []int64
		base   int64
		speed  float64
		want   []int64 // after start
	}{
		{"at speed 1 they keep their distances", []int64{990, 5000, 10000}, 1000, 1, []int64{-10, 4000, 9000}},
		{"at speed 10 they are ten times closer", []int64{1000, 6000, 11000}, 1000, 10, []int64{0, 500, 1000}},
		{"slower than life", []int64{1000, 1001}, 1000, .5, []int64{0, 2}},
		{"at any speed they are a millisecond apart", []int64{1000, 2000, 3000, 4000}, 1000, 1e9, []int64{0, 1, 2, 3}},
	} {
		t.Run(test.name, func(t *testing.T) {
			to := moved(test.stamps, test.base, start, test.speed)
			for i, s := range test.stamps {
				if got := to[s] - start.UnixMilli(); got != test.want[i] {
					t.Errorf("%d is moved to start%+d, want start%+d", s, got, test.want[i])
				}
			}
		})
	}
}

func TestWithoutATimesFileTheMessagesTimestampsStandIn(t *testing.T) {
	const path = "../testdata/captures/a-default/stream-0.pb.gz"
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	own, _, err := indexMessages(f)
	if err != nil {
		t.Fatal(err)
	}
	beside, _, err := index(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(own.times) != 7 || len(beside.times) != 7 {
		t.Fatalf("%d and %d times, want 7", len(own.times), len(beside.times))
	}
	for i := range own.times {
		if late := beside.times[i] - own.times[i]; late < 0 || late > 10 {
			t.Errorf("message %d was received %d ms after its timestamp", i, late)
		}
	}
}

// FuzzIndex holds that any file is either a recording whose times can be waited for, or an error.
func FuzzIndex(f *testing.F) {
	whole, err := os.ReadFile("../testdata/captures/h-codes-and-flags/stream-1.pb.gz")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte{2, 0x0a, 0})
	f.Add([]byte{4, 0x0a, 2, 0x0a, 0, 4, 0x0a, 2, 0x0a, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, stamps, err := indexMessages(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(rec.times) == 0 {
			t.Fatal("a recording without messages")
		}
		last := int64(0)
		for _, at := range append(rec.times, math.MaxInt64) {
			if at < last || at < 0 {
				t.Fatalf("times %v descend", rec.times)
			}
			last = at
		}
		for _, s := range stamps {
			if s <= 0 || s > maxTime {
				t.Fatalf("timestamp %d", s)
			}
		}
	})
}

// FuzzTimes holds that any text is either times or an error.
func FuzzTimes(f *testing.F) {
	f.Add("1795327880224 62181\n1795327885213 17052\n")
	f.Add("\n\n 5\nx")
	f.Fuzz(func(t *testing.T, text string) {
		times, err := parseTimes(text)
		for _, at := range times {
			if err != nil || at <= 0 || at > maxTime {
				t.Fatalf("time %d, error %v", at, err)
			}
		}
	})
}
