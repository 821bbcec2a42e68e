package aggregator

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// askingFleet are pods whose streams are read as a sink does: requests for whoever asks, what else
// their sidecars send where it is asked for. Each pod serves 2 requests a second of 50 bytes, and
// tells of a counter of its own as well.
type askingFleet struct {
	t       *testing.T
	s       *Store
	now     time.Time
	pods    []*askingPod
	flushes int
}

type askingPod struct {
	pod    Pod
	st     *Stream
	halves bool // each flush comes in two messages, with sizes in the second
	extra  float64
	count  float64
}

func newAskingFleet(t *testing.T) *askingFleet {
	s, err := New(Config{Keep: []string{"istio_requests_total", "istio_request_duration_milliseconds"}})
	if err != nil {
		t.Fatal(err)
	}
	return &askingFleet{t: t, s: s, now: s.started}
}

func (f *askingFleet) join(name, workload string, halves bool) *askingPod {
	p := Pod{Namespace: "test", Name: name, Workload: workload, FlushInterval: 5 * time.Second}
	n := &askingPod{pod: p, st: f.s.Connect(p), halves: halves, count: 1000}
	f.pods = append(f.pods, n)
	return n
}

// flush has every pod send a flush, its messages read for what is asked by then.
func (f *askingFleet) flush(times int) {
	f.t.Helper()
	for range times {
		f.now = f.now.Add(5 * time.Second)
		f.flushes++
		for _, p := range f.pods {
			p.send(f)
		}
	}
}

func (p *askingPod) send(f *askingFleet) {
	f.t.Helper()
	at := f.now.UnixMilli()
	p.count += 10
	p.extra += 10
	messages := [][]string{{"istio_requests_total", "istio_request_bytes", "istio_custom_total"}}
	if p.halves {
		messages = [][]string{{"istio_requests_total"}, {"istio_request_bytes", "istio_custom_total"}}
	}
	for _, names := range messages {
		b := &Batch{Timestamp: at, Asked: p.st.Asked(), Buckets: []Bucket{{UpperBound: 100, Count: 10}}}
		var d described
		for _, name := range names {
			if !f.s.config.keeps(name) && !b.Asked.Has([]byte(name)) {
				continue
			}
			ls := named(name, labels.FromStrings("reporter", "destination", "destination_workload", p.pod.Workload, "destination_workload_namespace", "test"))
			s := Sample{Key: labels.StableHash(ls), Timestamp: at, Kind: Counter, Value: p.count}
			switch name {
			case "istio_request_bytes":
				s.Kind, s.Value, s.Count, s.Last = Histogram, 500, 10, 1
			case "istio_custom_total":
				s.Value = 1e6 + p.extra
			}
			b.Samples, d = append(b.Samples, s), append(d, ls)
		}
		if err := p.st.Commit(f.now, b, d); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *askingFleet) register(expr string) *Query {
	f.t.Helper()
	q, err := f.s.Register(expr)
	if err != nil {
		f.t.Fatal(err)
	}
	return q
}

// eval returns the value of the expression, NaN where it has none, and what it stands on.
func (f *askingFleet) eval(q *Query) (float64, Answer) {
	f.t.Helper()
	a, err := q.Eval(f.t.Context(), f.now)
	if err != nil {
		f.t.Fatal(err)
	}
	if len(a.Values) == 0 {
		return math.NaN(), a
	}
	return a.Values[0].V, a
}

const (
	sizesOfShop = `sum(rate(istio_request_bytes_sum{reporter="destination",destination_workload="shop",destination_workload_namespace="test"}[1m]))`
	customCount = `sum(rate(istio_custom_total{reporter="destination",destination_workload="shop",destination_workload_namespace="test"}[1m]))`
)

// What an HPA asks for is incomplete until its window is covered, and exact from then on; no pod
// that it does not mean keeps rows for it.
func TestAMetricIsReadFromWhenAQueryNamesIt(t *testing.T) {
	for name, halves := range map[string]bool{"flushes of one message": false, "flushes of two": true} {
		t.Run(name, func(t *testing.T) {
			f := newAskingFleet(t)
			shop, other := f.join("shop-1", "shop", halves), f.join("other-1", "other", halves)
			f.flush(20)
			if n := len(shop.st.table.columns); n != 1 {
				t.Fatalf("%d series before anybody asks", n)
			}
			q := f.register(sizesOfShop)
			if _, a := f.eval(q); len(a.Partial) != 1 || a.Partial[0].Unread != "istio_request_bytes" || a.Partial[0].Whole {
				t.Errorf("before a flush since: %+v", a.Coverage)
			}
			for flush := range 20 {
				f.flush(1)
				v, a := f.eval(q)
				complete := len(a.Partial) == 0
				// The first flush is read for it; rows from the one before on tell of it.
				if want := flush >= 11; complete != want {
					t.Fatalf("flush %d: complete: %v, %+v", flush+1, complete, a.Coverage)
				}
				if complete && math.Abs(v-100) > 1e-9 || v > 100.001 {
					t.Errorf("flush %d: %v bytes a second, want 100", flush+1, v)
				}
			}
			if n := len(other.st.table.columns); n != 1 || other.st.Asked() != nil {
				t.Errorf("a pod that is not meant keeps %d series", n)
			}
			late := f.join("shop-2", "shop", halves)
			f.flush(2)
			if _, a := f.eval(q); len(a.Partial) != 1 || !a.Partial[0].Whole || a.Partial[0].Unread != "" || late.st.table.flushes != 2 {
				t.Errorf("a pod that came later is known from its first row: %+v", a.Coverage)
			}
			q.Close()
			f.flush(70)
			if n := len(shop.st.table.columns); n != 1 || shop.st.Asked() != nil {
				t.Errorf("%d series when nobody asks any more", n)
			}
		})
	}
}

// All that a counter has counted before it is read is nothing that happened then: not when it is
// asked for, nor when it is asked for again.
func TestACounterThatIsAskedForBeginsWithWhatItIs(t *testing.T) {
	f := newAskingFleet(t)
	f.join("shop-1", "shop", false)
	f.flush(20)
	for _, away := range []int{0, 1, 5, 100} {
		f.flush(away)
		q := f.register(customCount)
		for flush := range 30 {
			f.flush(1)
			v, a := f.eval(q)
			if v > 2.001 || len(a.Partial) == 0 && math.Abs(v-2) > 1e-9 {
				t.Errorf("%d flushes away, flush %d: %v a second, want 2", away, flush, v)
			}
			if flush >= 12 && len(a.Partial) > 0 {
				t.Errorf("flush %d: %+v", flush, a.Coverage)
			}
		}
		q.Close()
	}
}

// What a query names together with others is read on when those are not asked for any more.
func TestWhatWasReadAmongOthersIsKnownFromThenOn(t *testing.T) {
	f := newAskingFleet(t)
	f.join("shop-1", "shop", false)
	f.flush(5)
	all := f.register(`sum(rate({__name__=~"istio_request_.*_sum",pod="shop-1"}[1m]))`)
	f.flush(15)
	one := f.register(sizesOfShop)
	all.Close()
	f.flush(1)
	if v, a := f.eval(one); len(a.Partial) > 0 || math.Abs(v-100) > 1e-9 {
		t.Errorf("%v bytes a second, want 100: %+v", v, a.Coverage)
	}
}

// A selector that does not say who reports selects what callers report too.
func TestWhoMayReportASeriesIsAskedForIt(t *testing.T) {
	const shop = `destination_workload="shop",destination_workload_namespace="test"`
	for expr, want := range map[string]string{
		`sum(rate(istio_request_bytes_sum{reporter="destination",` + shop + `}[1m]))`:                    "shop nameless",
		`sum(rate(istio_request_bytes_sum{` + shop + `}[1m]))`:                                           "other shop nameless",
		`sum(rate(istio_request_bytes_sum{reporter="source",` + shop + `}[1m]))`:                         "other shop nameless",
		`sum(rate(istio_request_bytes_sum{reporter="source",source_workload="other",` + shop + `}[1m]))`: "other nameless",
		`sum(rate({__name__=~"istio_.*_bytes_sum",reporter="destination",` + shop + `}[1m]))`:            "shop nameless",
		`sum(rate(istio_requests_total{` + shop + `}[1m]))`:                                              "",
		`sum(rate(envoy_request_bytes_sum{` + shop + `}[1m]))`:                                           "",
	} {
		t.Run(expr, func(t *testing.T) {
			f := newAskingFleet(t)
			f.join("other-1", "other", false)
			f.join("shop-1", "shop", false)
			f.join("nameless", "", false)
			f.register(expr)
			var asked []string
			for _, p := range f.pods {
				if p.st.Asked().Has([]byte("istio_request_bytes")) {
					asked = append(asked, strings.TrimSuffix(p.pod.Name, "-1"))
				}
			}
			if got := strings.Join(asked, " "); got != want {
				t.Errorf("asked are %q, want %q", got, want)
			}
		})
	}
}

func TestAQueryOfItsOwnOfAMetricWithoutRowsIsRefused(t *testing.T) {
	f := newAskingFleet(t)
	f.join("shop-1", "shop", false)
	q := f.register(sizesOfShop)
	f.flush(3)
	_, err := f.s.Query(`sum(rate(istio_request_bytes_count[1m])) / sum(rate(istio_requests_total[1m]))`)
	var refused *QueryError
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "istio_request_bytes") || !strings.Contains(refused.Reason, "--keep") {
		t.Errorf("%v", err)
	}
	if _, err := q.Like(sizesOfShop); err != nil {
		t.Errorf("a part of what is registered: %v", err)
	}
	if _, err := f.s.Query(`sum(rate(istio_requests_total[1m]))`); err != nil {
		t.Error(err)
	}
}

// A selector that tells no name is refused where it may select what is not kept, and only there.
func TestWhatASelectorWithoutANameMayLack(t *testing.T) {
	f := newAskingFleet(t)
	for matchers, refused := range map[string]bool{
		`__name__=~"istio_requests_total|envoy_cluster_upstream_rq_total"`: false,
		`__name__=~"istio_request_duration_milliseconds_(sum|count)"`:      false,
		`__name__=~"istio_request_duration_milliseconds.*",pod="a"`:        false,
		`__name__=~"envoy_.*"`:                           false,
		`__name__=~"istio_requests.*"`:                   true,
		`__name__=~"istio_requests_total|istio_tcp_.*"`:  true,
		`__name__=~"istio_request_(bytes|duration)_sum"`: true,
		`__name__=~"(?i)ISTIO_REQUEST_BYTES_SUM"`:        true,
		`__name__!~"envoy_.*"`:                           true,
		`__name__=~".+_sum"`:                             true,
		`pod="a"`:                                        true,
	} {
		if _, err := f.s.Query("sum({" + matchers + "})"); (err != nil) != refused {
			t.Errorf("{%s}: %v", matchers, err)
		}
	}
}

// What begins to be read is no surge.
func TestCountsThatAreReadFromNowOnAreNoSurge(t *testing.T) {
	f := newAskingFleet(t)
	for range 10 {
		f.join("shop-"+string(rune('a'+len(f.pods))), "shop", false)
	}
	f.flush(40)
	q := f.register(`sum(rate(istio_request_bytes_count{reporter="destination",destination_workload="shop",destination_workload_namespace="test"}[1m]))`)
	d, err := q.DetectSurges(SurgeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for flush := range 60 {
		if s := d.At(f.now); s.Active {
			t.Fatalf("flush %d: %+v", flush, s)
		}
		f.flush(1)
	}
	if s := d.At(f.now); !s.Ready {
		t.Errorf("nothing is known after five minutes: %+v", s)
	}
}
