package aggregator

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
)

// paired sends a request counter and its duration histogram, one flush after the other.
type paired struct {
	t      *testing.T
	store  *Store
	stream *Stream
	flush  int64
	split  bool
	first  bool // histograms come before counters
}

// absent is an interval that a flush does not hold.
const absent = -1

func (p *paired) send(raw float64, interval int64) {
	p.t.Helper()
	p.flush++
	at := p.store.started.Add(time.Duration(p.flush) * 5 * time.Second)
	time.Sleep(time.Until(at))
	b := &Batch{Timestamp: at.UnixMilli(), Samples: []Sample{{Key: 1, Timestamp: at.UnixMilli(), Kind: Counter, Value: raw}}}
	d := described{named(requestsName, labels.EmptyLabels())}
	h := &Batch{Timestamp: b.Timestamp}
	if interval != absent {
		h.Samples = []Sample{{Key: 2, Timestamp: at.UnixMilli(), Kind: Histogram, Count: uint64(interval)}}
	}
	dh := described{named(durationsName, labels.EmptyLabels())}
	if p.first {
		b, d, h, dh = h, dh, b, d
	}
	if !p.split {
		b.Samples, d = append(b.Samples, h.Samples...), append(d, dh...)
	}
	p.commit(b, d)
	if p.split {
		time.Sleep(100 * time.Millisecond)
		p.commit(h, dh)
	}
}

func (p *paired) commit(b *Batch, d described) {
	p.t.Helper()
	if err := p.stream.Commit(time.Now(), b, d); err != nil {
		p.t.Fatal(err)
	}
}

// steps ends the stream and returns what the newest rows show of requests, row by row.
func (p *paired) steps(rows int) (steps []float64) {
	p.stream.Close()
	synctest.Wait()
	for name, ps := range stored(p.t, p.store) {
		if !strings.Contains(name, requestsName) {
			continue
		}
		vs := values(ps)
		for i := len(vs) - rows; i < len(vs); i++ {
			steps = append(steps, vs[i]-vs[i-1])
		}
	}
	return steps
}

func (p *paired) partnered() bool {
	return slices.ContainsFunc(p.stream.table.columns, func(c *column) bool { return c.partner != nil })
}

// A counter that is far beyond what its histogram counted in the very same flushes is not believed,
// where the two have agreed; whatever else is far apart is.
func TestAStepThatItsIntervalContradictsCountsAsTheIntervalSays(t *testing.T) {
	type sent struct {
		raw      float64
		interval int64
	}
	const agreed = 12 // rows of 50 before, up to 9,600
	for name, c := range map[string]struct {
		agreed int
		sent   []sent
		want   []float64
		paired bool
	}{
		"30 million at once, and back":      {agreed, []sent{{30e6, 50}, {9700, 50}, {9750, 50}}, []float64{50, 50, 50}, true},
		"30 million for two flushes":        {agreed, []sent{{30e6, 50}, {30e6, 50}, {9750, 50}, {9800, 50}}, []float64{50, 50, 50, 50}, true},
		"fallen below, and back":            {agreed, []sent{{8000, 50}, {9700, 50}, {9750, 50}}, []float64{50, 50, 50}, true},
		"fallen to 0, and back":             {agreed, []sent{{0, 50}, {9700, 50}, {9750, 50}}, []float64{50, 50, 50}, true},
		"begun anew":                        {agreed, []sent{{30, 40}, {70, 40}, {110, 40}}, []float64{40, 40, 40}, true},
		"higher for good":                   {agreed, []sent{{30e6, 50}, {30e6 + 60, 60}, {30e6 + 120, 60}}, []float64{50, 60, 60}, true},
		"more and more: renamed tags":       {agreed, []sent{{1e6, 50}, {2e6, 50}, {3e6, 50}, {4e6, 50}, {5e6, 50}}, []float64{50, 50, 50, 1e6, 1e6}, false},
		"a histogram that comes later":      {agreed, []sent{{14602, 2}, {14602, 5000}, {14652, 50}}, []float64{2, 5000, 50}, true},
		"a burst":                           {agreed, []sent{{209600, 200000}, {209650, 50}}, []float64{200000, 50}, true},
		"a burst, its histogram a bit late": {agreed, []sent{{29600, 15000}, {29650, 5050}}, []float64{20000, 50}, true},
		"a burst, its counter a bit late":   {agreed, []sent{{24600, 20000}, {29650, 50}}, []float64{15000, 5050}, true},
		"off once":                          {agreed, []sent{{9700, 50}, {9750, 50}}, []float64{100, 50}, true},
		"off twice":                         {agreed, []sent{{9700, 50}, {9800, 50}}, []float64{100, 100}, false},
		"off by one in a hundred, twice":    {agreed, []sent{{19600, 9900}, {29600, 9900}}, []float64{10000, 10000}, false},
		"off by one in a thousand":          {agreed, []sent{{19600, 9990}, {29600, 9990}}, []float64{10000, 10000}, true},
		"ten times, but few":                {agreed, []sent{{10640, 40}, {10690, 50}}, []float64{1040, 50}, true},
		"many, but not ten times":           {agreed, []sent{{19600, 1001}, {19650, 50}}, []float64{10000, 50}, true},
		"no histogram":                      {agreed, []sent{{30e6, absent}, {30e6 + 50, 50}}, []float64{30e6 - 9600, 50}, true},
		"no histogram the second time":      {agreed, []sent{{30e6, 50}, {30e6 + 50, absent}, {30e6 + 100, 50}}, []float64{50, 50, 50}, true},
		"back, without a histogram":         {agreed, []sent{{8000, 50}, {9700, absent}, {9750, 50}}, []float64{50, 50, 50}, true},
		"anew, without a histogram":         {agreed, []sent{{30, 40}, {70, absent}, {110, 40}}, []float64{40, 40, 40}, true},
		"not yet agreed":                    {9, []sent{{30e6, 50}, {9700, 50}}, []float64{30e6 - 9450, 9700}, false},
		"just agreed":                       {10, []sent{{30e6, 50}, {9600, 50}, {9650, 50}}, []float64{50, 50, 50}, true},
	} {
		for _, wire := range []paired{{}, {split: true}, {first: true}, {split: true, first: true}} {
			how := map[bool]string{false: "", true: ", split"}[wire.split] + map[bool]string{false: "", true: ", histogram first"}[wire.first]
			t.Run(name+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, err := New(Config{})
					if err != nil {
						t.Fatal(err)
					}
					p := wire
					p.t, p.store, p.stream = t, s, s.Connect(Pod{Namespace: "test", Name: "pod"})
					for i := range c.agreed + 1 {
						p.send(9000+50*float64(i), 50)
					}
					for _, f := range c.sent {
						p.send(f.raw, f.interval)
					}
					if got := p.steps(len(c.sent)); !cmp.Equal(got, c.want) {
						t.Errorf("counted %v, want %v", got, c.want)
					}
					if got := p.partnered(); got != c.paired {
						t.Errorf("a pair: %v, want %v", got, c.paired)
					}
				})
			})
		}
	}
}

// A sidecar that has begun anew is told by its first flush, in whichever message of it.
func TestTheSecondMessageOfAFirstFlushFollowsOnNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		send := func(st *Stream, flush int, requests float64, interval uint64) {
			at := s.started.Add(time.Duration(flush) * 5 * time.Second)
			b, d := &Batch{Timestamp: at.UnixMilli()}, described{}
			if requests > 0 {
				b.Samples = []Sample{{Key: 1, Timestamp: b.Timestamp, Kind: Counter, Value: requests}, {Key: 2, Timestamp: b.Timestamp, Kind: Histogram, Count: interval}}
				d = described{named(requestsName, labels.EmptyLabels()), named(durationsName, labels.EmptyLabels())}
			}
			if err := st.Commit(time.Now(), b, d); err != nil {
				t.Fatal(err)
			}
		}
		pod := Pod{Namespace: "test", Name: "pod"}
		st := s.Connect(pod)
		for flush := 1; flush <= 3; flush++ {
			time.Sleep(5 * time.Second)
			send(st, flush, 10_000, 0)
		}
		st.Close()
		time.Sleep(5 * time.Second)
		st = s.Connect(pod)
		send(st, 4, 0, 0)
		time.Sleep(time.Second)
		send(st, 4, 10_100, 9_000)
		st.Close()
		got := values(storedNamed(t, s, requestsName)[`{__name__="istio_requests_total", namespace="test", pod="pod"}`])
		if len(got) == 0 || got[len(got)-1]-got[0] != 10_100 {
			t.Errorf("%v, want 10,100 more in the end", got)
		}
	})
}
