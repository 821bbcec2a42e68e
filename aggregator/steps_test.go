package aggregator

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
)

// The order of the writers' stores is tested by value: every shared word is atomic, so the race
// detector has nothing to say about it.
//
// A stream commits flushes of which every value is known. After each step of the production code
// (steps.go) readers look, which are production code too: one that runs whole, and ones that looked
// their rows up some steps ago and read them now. Each breakage undoes or anticipates a step, so
// that the readers find what they would if the stores had been made in another order, and has to be
// seen.

// looking is a pod whose rows readers look at after each step of its writer.
type looking struct {
	t      *testing.T
	store  *Store
	stream *Stream
	breaks func(l *looking, s ring.Step)
	trust  bool // readers do not look at claim again
	inside bool // readers are looking; what they put together for themselves is no step

	counters, counts *Query
	surge            *surgeRows
	rose             float64 // what the surge's reader has seen counters rise by

	now   time.Time
	times []int64                      // of rows, that of the flush that is being taken last
	truth map[string]map[int64]float64 // what a series' rows hold, by their times
	came  map[string]int64             // when a series was first sent
	seen  map[string]int64             // and last
	names map[*column]string

	pending []scan
	wrong   int
	first   string // what was wrong first
}

const lookRetention = 10 * time.Second

func newLooking(t *testing.T, breaks func(*looking, ring.Step)) *looking {
	s, err := New(Config{Retention: lookRetention})
	if err != nil {
		t.Fatal(err)
	}
	l := &looking{
		t: t, store: s, breaks: breaks, now: s.started,
		truth: map[string]map[int64]float64{}, came: map[string]int64{}, seen: map[string]int64{}, names: map[*column]string{},
	}
	register := func(expr string) *Query {
		q, err := s.Register(expr)
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	l.counters = register("sum(rate(looked_requests_total[5s]))")
	l.counts = register("sum(rate(looked_size_count[5s]))")
	l.counters.Watch(true)
	l.surge = newSurgeRows(s, l.counters.surge)
	s.hook = l.look
	l.stream = s.Connect(Pod{Namespace: "test", Name: "pod", FlushInterval: 5 * time.Second})
	return l
}

func (l *looking) fail(s ring.Step, format string, args ...any) {
	if l.wrong++; l.first == "" {
		l.first = fmt.Sprintf("after step %d of row %d: ", s, len(l.times)) + fmt.Sprintf(format, args...)
	}
}

// flush commits a flush that comes a time after the last, in one message or in two: counters with
// values, and the interval of a histogram.
func (l *looking) flush(after time.Duration, messages int, counters map[string]float64, interval uint64) {
	l.now = l.now.Add(after)
	at := l.now.UnixMilli()
	if len(l.times) == 0 {
		l.times = append(l.times, at-5000)
	}
	before := l.times[len(l.times)-1]
	l.times = append(l.times, at)
	full := &Batch{Timestamp: at}
	var d described
	for _, k := range slices.Sorted(maps.Keys(counters)) {
		ls := named("looked_requests_total", labels.FromStrings("k", k))
		full.Samples = append(full.Samples, Sample{Key: labels.StableHash(ls), Timestamp: at, Kind: Counter, Value: counters[k]})
		d = append(d, ls)
		l.expect(looked("requests_total", "k", k), at, before, counters[k], false)
	}
	if interval > 0 {
		ls := named("looked_size", labels.EmptyLabels())
		full.Buckets = []Bucket{{UpperBound: 1, Count: interval / 2}}
		full.Samples = append(full.Samples, Sample{Key: 1, Timestamp: at, Kind: Histogram, Value: 3, Count: interval, Last: 1})
		d = append(d, ls)
		l.expect(looked("size_bucket", "le", "1"), at, before, float64(interval/2), true)
		l.expect(looked("size_bucket", "le", "+Inf"), at, before, float64(interval), true)
		l.expect(looked("size_count"), at, before, float64(interval), true)
		l.expect(looked("size_sum"), at, before, 3, true)
	}
	for series, rows := range l.truth { // carried forward
		if _, ok := rows[at]; !ok && l.alive(series) {
			rows[at] = rows[before]
		}
	}
	half := len(d) / messages
	for i := range messages {
		from, to := i*half, (i+1)*half
		if i == messages-1 {
			to = len(d)
		}
		b := *full
		b.Samples = full.Samples[from:to]
		if err := l.stream.Commit(l.now, &b, d[from:to]); err != nil {
			l.t.Fatal(err)
		}
	}
}

// looked names a series of the pod as its reader does.
func looked(name string, ls ...string) string {
	return named("looked_"+name, labels.FromStrings(append(ls, "namespace", "test", "pod", "pod")...)).String()
}

// expect says what a series' row will hold: a value, or what it held before and so much more. One
// that is new began with 0 a row before, but for a counter that comes with the pod's first flush.
func (l *looking) expect(series string, at, before int64, v float64, add bool) {
	rows := l.truth[series]
	if rows == nil {
		rows = map[int64]float64{}
		l.truth[series], l.came[series] = rows, at
		if add || len(l.times) > 2 {
			rows[before] = 0
		}
	}
	if add {
		v += rows[before]
	}
	rows[at], l.seen[series] = v, at
}

// alive reports whether the table keeps the series.
func (l *looking) alive(series string) bool {
	return l.seen[series] >= l.times[len(l.times)-1]-lookRetention.Milliseconds()
}

// look is called after each step.
func (l *looking) look(s ring.Step) {
	if l.inside || l.stream == nil { // the pod is just coming
		return
	}
	if l.breaks != nil {
		l.breaks(l, s)
	}
	l.inside = true
	defer func() { l.inside = false }()
	l.whole(s)
	l.halves(s)
	l.collect()
	l.state(s)
	for _, q := range []*Query{l.counters, l.counts} {
		for _, sel := range q.selectors[0].selections.all() {
			if len(sel.columns.all()) == 0 {
				l.fail(s, "a pod is selected and no series of it")
			}
		}
	}
	if s == stepMarked && ring.Row(l.stream.table.closed.Load()) != l.stream.table.ring.Newest() {
		l.fail(s, "a query is marked before the row is closed")
	}
}

// whole reads everything, as the engine does, between two steps.
func (l *looking) whole(s ring.Step) {
	if len(l.times) < 2 {
		return
	}
	newest := l.times[len(l.times)-1]
	series := storedNamed(l.t, l.store, "looked_requests_total|looked_size_.+")
	for name, points := range series {
		last := -1
		for _, p := range points {
			if value.IsStaleNaN(p.v) {
				continue
			}
			i := slices.Index(l.times, p.t)
			if want, ok := l.truth[name][p.t]; !ok || want != p.v {
				l.fail(s, "%s is %v at %d, want %v", name, p.v, p.t, want)
			}
			if last >= 0 && i != last+1 {
				l.fail(s, "%s has a hole before %d", name, p.t)
			}
			last = i
		}
	}
	closed := l.stream.table.closed.Load()
	for name, rows := range l.truth {
		if !l.alive(name) || l.came[name] > l.times[closed] {
			continue
		}
		for i := range closed + 1 {
			at := l.times[i]
			_, was := rows[at]
			if is := slices.ContainsFunc(series[name], func(p point) bool { return p.t == at && !value.IsStaleNaN(p.v) }); was && !is &&
				at > newest-lookRetention.Milliseconds() {
				l.fail(s, "%s has no row at %d, which is closed and within the retention", name, at)
			}
		}
	}
}

// halves reads the values of rows that were looked up one to seven steps ago, as the compiled
// queries do.
func (l *looking) halves(s ring.Step) {
	var kept []scan
	for _, sc := range l.pending {
		var wrong []string
		for _, in := range sc.batch[:sc.n] {
			for row := in.lo; row <= in.hi; row++ {
				at, is := sc.gen.Time(row), in.block.At(row)
				v := 0.0
				if in.block.Counts() == 0 {
					v = is.Counter()
				} else {
					v = in.block.Count(is, in.block.Counts()-1)
				}
				if want, ok := l.truth[l.name(in.column)][at]; !ok || want != v {
					wrong = append(wrong, fmt.Sprintf("%s was looked up and is %v at %d, want %v", l.name(in.column), v, at, want))
				}
			}
		}
		if !l.trust && sc.torn() { // it would start over
			continue
		}
		if len(wrong) > 0 {
			l.fail(s, "%s", wrong[0])
		}
		kept = append(kept, sc)
	}
	l.pending = kept
	for _, q := range []*Query{l.counters, l.counts} {
		if sc := newScan(l.store.index, q.selectors[0], math.MinInt64, math.MaxInt64, 1); sc.begin() {
			l.pending = append(l.pending, sc)
		}
	}
	l.pending = l.pending[max(0, len(l.pending)-14):] // of two queries
}

func (l *looking) name(c *column) string {
	if l.names[c] == "" {
		var b labels.ScratchBuilder
		suffix := ""
		if c.class.kind == Histogram {
			suffix = "_count"
		}
		l.names[c] = c.class.labelsOf(&b, c.table.pod.Load(), suffix, "").String()
	}
	return l.names[c]
}

// collect reads the rows that are closed as the surge detectors do: each once.
func (l *looking) collect() {
	for _, r := range l.surge.collect(func(int, int64) {}) {
		l.rose += r.Counts[0]
	}
}

// state asks how far back the pod's rows reach.
func (l *looking) state(s ring.Step) {
	if len(l.times) < 2 {
		return
	}
	p := l.stream.table.state(l.now.UnixMilli(), lookRetention)
	if p.Newest.IsZero() {
		return
	}
	oldest, newest := slices.Index(l.times, p.Oldest.UnixMilli()), slices.Index(l.times, p.Newest.UnixMilli())
	if oldest < 0 || newest < max(oldest, len(l.times)-2) || p.Whole && oldest != 0 {
		l.fail(s, "the pod's rows are told to reach from %s to %s, whole: %v", p.Oldest, p.Newest, p.Whole)
	}
	for _, c := range l.stream.table.columns {
		if b := c.block.Load(); b != nil && l.stream.table.gen.Load() != b.Rows() && l.stream.table.ring.Rows() != l.stream.table.gen.Load() {
			l.fail(s, "the table shows a generation in which a column has no block yet")
		}
	}
}

// run commits flushes that wrap the ring, make it grow after it has wrapped and be packed, let
// series come, stay away, return and expire, and counts pass their lower half.
func (l *looking) run() *looking {
	counters, n := map[string]float64{}, 0
	flush := func(after time.Duration, messages int, keys ...string) {
		n++
		for _, k := range keys {
			counters[k] = float64(1000*n + 100*len(k) + int(k[0]))
		}
		sent := map[string]float64{}
		for _, k := range keys {
			sent[k] = counters[k]
		}
		// An interval of which no whole number makes 2^31: each total that is replaced would be too
		// far from the row that replaces it.
		l.flush(after, messages, sent, 1<<32/81)
	}
	for i := range 9 {
		keys := []string{"a", "b"}
		switch i {
		case 3: // more than half of the slab will die
			keys = append(keys, "c", "dd", "ddd", "dddd", "ddddd", "dddddd", "ddddddd", "dddddddd")
		case 5, 7:
			keys = []string{"a", "c"}
		}
		flush(5*time.Second, 1+i%2, keys...)
	}
	for range 40 {
		flush(time.Second, 2, "b", "a", "c")
	}
	for range 60 {
		flush(500*time.Millisecond, 1, "a", "c")
	}
	return l
}

func lookAtEveryStep(t *testing.T, trust bool, breaks func(*looking, ring.Step)) (l *looking) {
	synctest.Test(t, func(t *testing.T) { // the row's timer never fires: time stands still
		l = newLooking(t, breaks)
		l.trust = trust
		l.run()
		l.stream.Close()
	})
	return l
}

func TestReadersSeeOnlyWhatWasWrittenAfterEachStep(t *testing.T) {
	l := lookAtEveryStep(t, false, nil)
	if l.wrong > 0 {
		t.Errorf("%d times wrong, first: %s", l.wrong, l.first)
	}
	want := 0.0
	for name, rows := range l.truth {
		if strings.Contains(name, "looked_requests_total") {
			at := slices.Sorted(maps.Keys(rows))
			want += rows[at[len(at)-1]] - rows[at[0]]
		}
	}
	if l.rose != want {
		t.Errorf("the surge's reader saw a rise of %v in all, want %v", l.rose, want)
	}
	if slots, begin := l.stream.table.ring.Slots(), *beginOf(l.stream.table.ring.Rows()); slots != 32 || begin == 0 {
		t.Errorf("the ring has %d slots and begins with row %d; the test wants one that grew after it had wrapped", slots, begin)
	}
}
