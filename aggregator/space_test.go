package aggregator

import (
	"fmt"
	"testing"
	"time"
)

// namer names a series and counts how often it is asked.
type namer struct {
	name  string
	asked int
}

func (d *namer) Describe(int) (string, []Label, error) {
	d.asked++
	return d.name, []Label{{"reporter", "destination"}}, nil
}

func TestASeriesIsDescribedOnceInItsSpace(t *testing.T) {
	for name, test := range map[string]struct {
		spaces []uint64 // of one pod after the other
		asked  int
	}{
		"keys are each stream's own": {[]uint64{0, 0, 0}, 3},
		"one space":                  {[]uint64{7, 7, 7}, 1},
		"two spaces":                 {[]uint64{7, 8, 7, 8}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			d := &namer{name: "istio_requests_total"}
			var streams []*Stream
			for i, space := range test.spaces {
				streams = append(streams, s.Connect(Pod{Namespace: "test", Name: fmt.Sprint("pod-", i)}))
				b := &Batch{Timestamp: s.started.UnixMilli(), Space: space}
				b.Samples = []Sample{{Key: 1, Timestamp: b.Timestamp, Kind: Counter, Value: 5}}
				if err := streams[i].Commit(s.started, b, d); err != nil {
					t.Fatal(err)
				}
			}
			if d.asked != test.asked {
				t.Errorf("described %d times, want %d", d.asked, test.asked)
			}
			classes := s.classes.named(d.name)
			if len(classes) != 1 || len(classes[0].columns.all()) != len(streams) {
				t.Fatalf("%d label sets, want one with a series of each pod", len(classes))
			}
			for _, st := range streams {
				st.Close()
			}
			s.sweep(t.Context(), s.millis(s.started.Add(time.Hour)))
			if n := len(s.classes.byHash) + len(s.classes.byWire); n != 0 {
				t.Errorf("%d label sets are left", n)
			}
		})
	}
}

// Of a key of which a counter is known a histogram is another series, however unlikely.
func TestAKeyOfAnotherKindIsDescribed(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	d := &namer{name: "m"}
	for i, kind := range []Kind{Counter, Histogram, Summary} {
		b := &Batch{Timestamp: s.started.UnixMilli(), Space: 7, Samples: []Sample{{Key: 1, Timestamp: s.started.UnixMilli(), Kind: kind}}}
		if err := s.Connect(Pod{Namespace: "test", Name: fmt.Sprint("pod-", i)}).Commit(s.started, b, d); err != nil {
			t.Fatal(err)
		}
	}
	if kinds := s.classes.named("m"); len(kinds) != 2 || d.asked != 3 {
		t.Errorf("%d label sets after %d descriptions, want a counter's and a histogram's after 3", len(kinds), d.asked)
	}
}
