package aggregator

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// selected are the columns and views that a selector's selections hold; each must be there once.
func selected(t *testing.T, ss []*selection) map[selectionKey]map[*column]bool {
	t.Helper()
	found := map[selectionKey]map[*column]bool{}
	for _, s := range ss {
		if s.gone.Load() {
			continue
		}
		k := selectionKey{s.table, s.view}
		if found[k] != nil {
			t.Errorf("two selections of %s, view %d", s.table.pod.Load().Name, s.view)
		}
		found[k] = map[*column]bool{}
		for _, c := range s.columns.all() {
			if c.left {
				continue
			}
			if found[k][c] || c.table != s.table {
				t.Errorf("%s of %s is there twice or with another pod", c.class.name, c.table.pod.Load().Name)
			}
			found[k][c] = true
		}
		if len(found[k]) == 0 {
			t.Errorf("an empty selection of %s is left", s.table.pod.Load().Name)
		}
	}
	return found
}

// churn is a store of which pods, series and registered selectors come and go.
type churn struct {
	t       *testing.T
	r       *rand.Rand
	store   *Store
	at      time.Time
	streams []*Stream
	queries []*Query
}

func (c *churn) step() {
	c.at = c.at.Add(time.Second)
	pick := func(s ...string) string { return s[c.r.IntN(len(s))] }
	switch c.r.IntN(6) {
	case 0:
		c.streams = append(c.streams, c.store.Connect(Pod{Namespace: pick("a", "b"), Name: fmt.Sprintf("pod-%d", c.r.IntN(12)), FlushInterval: time.Second}))
	case 1:
		name := pick("istio_requests_total", "istio_request_duration_milliseconds", "istio_request_duration_milliseconds_count", "istio_request_duration_milliseconds_bucket")
		q, err := c.store.Register(name + pick("", `{destination_workload="w1"}`, `{destination_workload="w2",reporter="destination"}`, `{namespace="a"}`, `{namespace="b",reporter="source"}`,
			`{pod="pod-3"}`, `{pod=~"pod-1.*",destination_workload!="w1"}`, `{destination_workload=~"w.",namespace!="a"}`, `{reporter=""}`, `{le="5"}`, `{nothing="x"}`))
		if err != nil {
			c.t.Fatal(err)
		}
		c.queries = append(c.queries, q)
	case 2:
		if n := len(c.queries); n > 8 {
			i := c.r.IntN(n)
			c.queries[i].Close()
			c.queries = append(c.queries[:i], c.queries[i+1:]...)
		}
	case 3:
		c.store.sweep(c.t.Context(), c.store.millis(c.at))
	default:
		if len(c.streams) > 0 {
			c.flush(c.streams[c.r.IntN(len(c.streams))], pick)
		}
	}
}

func (c *churn) flush(st *Stream, pick func(...string) string) {
	b := &Batch{Timestamp: c.at.UnixMilli()}
	var d described
	for range 1 + c.r.IntN(3) {
		name, kind := "istio_requests_total", Counter
		switch c.r.IntN(4) {
		case 0: // a counter that is called like a histogram's view
			name = "istio_request_duration_milliseconds_count"
		case 1:
			name, kind = "istio_request_duration_milliseconds", Histogram
		}
		ls := labels.FromStrings("destination_workload", pick("w1", "w2", "w3"), "reporter", pick("destination", "source", ""))
		b.Samples = append(b.Samples, Sample{Key: uint64(len(name))<<32 + labels.StableHash(ls)>>32, Timestamp: b.Timestamp, Kind: kind, Count: 1})
		d = append(d, named(name, ls))
	}
	_ = st.Commit(c.at, b, d) // superseded or not
}

// check compares while no row closes: one that does so of itself (late) lets go of columns.
func (c *churn) check() (columns int) {
	for _, t := range c.store.tables.all.all() {
		t.mu.Lock()
		defer t.mu.Unlock()
	}
	for _, q := range c.queries {
		sel := q.selectors[0]
		got := selected(c.t, sel.selections.all())
		want := selected(c.t, c.store.selectionsOf(newSelector(sel.matchers)))
		for k, cs := range want {
			for col := range cs {
				if !got[k][col] {
					c.t.Errorf("%s: %s of %s is missing", q.expr, col.class.name, k.table.pod.Load().Name)
				}
				delete(got[k], col)
				columns++
			}
		}
		for k, cs := range got {
			for col := range cs {
				c.t.Errorf("%s: %s %v of %s is selected", q.expr, col.class.name, col.class.labels, k.table.pod.Load().Name)
			}
		}
	}
	return columns
}

func TestPreparedSelectorsSelectWhatTheirMatchersDo(t *testing.T) {
	columns := 0
	for seed := range uint64(10) {
		s, err := New(Config{Retention: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		c := &churn{t: t, r: rand.New(rand.NewPCG(seed, 9)), store: s, at: s.started}
		for range 300 {
			c.step()
			columns += c.check()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		for _, q := range c.queries {
			q.Close()
		}
		if len(s.registered) != 0 {
			t.Fatalf("seed %d: %d metric names are left in the index", seed, len(s.registered))
		}
		s.sweep(t.Context(), math.MaxInt64)
	}
	if columns < 5_000 {
		t.Errorf("only %d columns were compared", columns)
	}
}

// A label set is matched against the queries that ask for one of its values, not against those of
// other workloads.
func TestNewLabelSetsAreNotMatchedAgainstOtherWorkloadsQueries(t *testing.T) {
	x := mustStore(t).index
	for i := range 1000 {
		expr := fmt.Sprintf(`istio_requests_total{reporter="destination",destination_workload="w%d",destination_workload_namespace="n%d"}`, i, i%10)
		ms, err := parser.ParseMetricSelector(expr)
		if err != nil {
			t.Fatal(err)
		}
		x.prepare(newSelector(ms))
	}
	for under, sels := range x.registered["istio_requests_total"].byLabel {
		if len(sels) > 2 {
			t.Errorf("%d selectors are looked at for %s=%q", len(sels), under.name.Value(), under.value.Value())
		}
	}
}
