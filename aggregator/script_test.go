package aggregator

import (
	"context"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// TestScripts runs testdata/*.test: what sidecars send, and what PromQL says of it at an instant.
// The format:
//
//	store retention=1m deltas budget=100
//	                  settings of the store, before anything else
//	connect S pod=NAME flush=5s workload=W
//	                  opens stream S of a pod
//	flush S at 5s [stamp 5s]
//	                  a message of S that arrives then; its timestamp_ms (default: then)
//	  NAME{LABELS} 10
//	                  a counter
//	  NAME{LABELS} hist 5:2 10:3 n=4 sum=33
//	                  an interval histogram: cumulative counts by upper bound, count, sum
//	  NAME{LABELS} summary n=4 sum=33 2 3 …
//	                  an interval summary: its quantiles, the last one repeated to ten
//	  NAME{LABELS} gauge 7
//	                  a gauge
//	repeat S from 1s to 60s every 1s [stamp 1s every 1010ms]
//	                  such messages; a value A+B is A in the first, A+B in the second, A+2B …
//	close S           ends the stream
//	heap 120          what the collector finds alive from now on, in the budget's unit
//	sweep at 2m       frees the pods that have been silent for a retention
//	eval at 10s EXPR  then a line {LABELS} VALUE a series, or none, or a line = VALUE
//	pods at 10s EXPR  then a line reporting=1 silent=0 matched=2 moved=true covered=10s
//	absent at 10s EXPR
//	                  then a line for each selector that selects nothing, or none (formatAbsent)
//
// Times count from the start of the store. Namespaces are "test".
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.test")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".test"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runScript(t, f) })
		})
	}
}

type script struct {
	t       *testing.T
	store   *Store
	config  Config
	streams map[string]*Stream
	scraped *scraped // what Prometheus would have; nil where nobody asks
	at      string   // file:line
}

func runScript(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	(&script{t: t, streams: map[string]*Stream{}}).run(filepath.Base(file), strings.Split(string(text), "\n"), 1)
}

// run executes the lines; the first one's number in the file is told for messages.
func (s *script) run(file string, lines []string, first int) {
	for i := 0; i < len(lines); i++ {
		s.at = fmt.Sprintf("%s:%d", file, first+i)
		line := strings.TrimSpace(lines[i])
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		body := i + 1
		for body < len(lines) && strings.HasPrefix(lines[body], "  ") {
			body++
		}
		s.command(line, lines[i+1:body])
		i = body - 1
	}
	for _, st := range s.streams {
		st.Close()
	}
}

func (s *script) fatal(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf(s.at+": "+format, args...)
}

func (s *script) command(line string, body []string) {
	word, rest, _ := strings.Cut(line, " ")
	if word == "store" {
		for _, f := range strings.Fields(rest) {
			k, v, _ := strings.Cut(f, "=")
			switch k {
			case "retention":
				s.config.Retention = s.duration(v)
			case "deltas":
				s.config.CountersAsDeltas = true
			case "series":
				s.config.MaxSeriesPerPod = int(s.number(v))
			case "budget":
				s.config.MemoryBudget = int64(s.number(v))
			default:
				s.fatal("unknown setting %q", k)
			}
		}
		return
	}
	if s.store == nil {
		store, err := New(s.config)
		if err != nil {
			s.fatal("%v", err)
		}
		s.store = store
	}
	switch word {
	case "connect":
		s.connect(strings.Fields(rest))
	case "flush":
		s.flush(strings.Fields(rest), body)
	case "prometheus":
		if s.scraped == nil {
			s.fatal("only differences.md asks Prometheus")
		}
		when, expr, _ := strings.Cut(strings.TrimPrefix(rest, "at "), " ")
		s.compare(expr, s.scraped.answer(s.t, expr, s.sleepUntil(when)), body)
	case "repeat":
		s.repeat(strings.Fields(rest), body)
	case "close":
		s.streams[rest].Close()
	case "heap":
		s.store.liveHeap = func() uint64 { return uint64(s.number(rest)) }
		s.store.watchMemory()
	case "sweep":
		s.store.sweep(s.t.Context(), s.store.millis(s.sleepUntil(strings.TrimPrefix(rest, "at "))))
	case "absent":
		when, expr, _ := strings.Cut(strings.TrimPrefix(rest, "at "), " ")
		s.absent(expr, s.sleepUntil(when), body)
	case "eval", "pods":
		when, expr, _ := strings.Cut(strings.TrimPrefix(rest, "at "), " ")
		at := s.sleepUntil(when)
		q, err := s.store.Query(expr)
		if err != nil {
			s.fatal("%v", err)
		}
		a, err := q.Eval(context.Background(), at)
		if err != nil {
			s.fatal("%v", err)
		}
		if word == "pods" {
			got := fmt.Sprintf("reporting=%d silent=%d matched=%d moved=%t covered=%s", a.Reporting, a.Silent, a.Matched, a.Moved, a.Covered)
			if want := strings.TrimSpace(strings.Join(body, " ")); got != want {
				s.t.Errorf("%s: %s\n got %s\nwant %s", s.at, expr, got, want)
			}
			return
		}
		s.compare(expr, a.Values, body)
	default:
		s.fatal("unknown command %q", word)
	}
}

// absent asks twice: prepared, as an HPA's expression is, and not.
func (s *script) absent(expr string, at time.Time, body []string) {
	want := []string{}
	for _, l := range body {
		if l = strings.TrimSpace(l); l != "none" {
			want = append(want, l)
		}
	}
	for _, query := range []func(string) (*Query, error){s.store.Query, s.store.Register} {
		q, err := query(expr)
		if err != nil {
			s.fatal("%v", err)
		}
		a, err := q.Eval(context.Background(), at)
		if err != nil {
			s.fatal("%v", err)
		}
		got := []string{}
		for _, absent := range a.Absent {
			got = append(got, formatAbsent(absent))
		}
		if d := cmp.Diff(want, got); d != "" {
			s.t.Errorf("%s: %s (-want +got)\n%s", s.at, expr, d)
		}
		q.Close()
	}
}

// formatAbsent writes 0: unknown metric, unknown label app, kin 2, own request_protocol="grpc" of
// http tcp, other response_code="5" of 200.
func formatAbsent(a Absent) string {
	text := fmt.Sprintf("%d:", a.Selector)
	if a.UnknownMetric {
		text += " unknown metric,"
	}
	for _, l := range a.UnknownLabels {
		text += " unknown label " + l + ","
	}
	text += fmt.Sprintf(" kin %d", a.Kin)
	for _, u := range a.Unreported {
		kind := "other"
		if u.Own {
			kind = "own"
		}
		text += fmt.Sprintf(", %s %s of", kind, u.Matcher)
		for _, v := range u.Values {
			text += " " + v
		}
	}
	return text
}

func (s *script) connect(f []string) {
	p := Pod{Namespace: "test"}
	for _, o := range f[1:] {
		k, v, _ := strings.Cut(o, "=")
		switch k {
		case "pod":
			p.Name = v
		case "flush":
			p.FlushInterval = s.duration(v)
		case "workload":
			p.Workload = v
		default:
			s.fatal("unknown option %q", k)
		}
	}
	s.streams[f[0]] = s.store.Connect(p)
}

func (s *script) flush(f []string, body []string) {
	if len(f) < 3 || f[1] != "at" {
		s.fatal("want: flush STREAM at TIME [stamp TIME]")
	}
	arrival := s.sleepUntil(f[2])
	stamp := arrival.UnixMilli()
	if len(f) == 5 {
		stamp = s.store.started.Add(s.duration(f[4])).UnixMilli()
	}
	b := &Batch{Timestamp: stamp}
	var d described
	for _, l := range body {
		s.sample(b, &d, strings.TrimSpace(l))
	}
	if s.scraped != nil {
		s.scraped.scrape(s.streams[f[0]], arrival.UnixMilli(), b, d)
	}
	if err := s.streams[f[0]].Commit(arrival, b, d); err != nil {
		s.t.Logf("%s: %v", s.at, err)
	}
}

func (s *script) repeat(f []string, body []string) {
	if len(f) != 7 && len(f) != 11 || f[1] != "from" || f[3] != "to" || f[5] != "every" {
		s.fatal("want: repeat STREAM from TIME to TIME every TIME [stamp TIME every TIME]")
	}
	growing := regexp.MustCompile(`\b(\d+)\+(\d+)\b`)
	from, to, every := s.duration(f[2]), s.duration(f[4]), s.duration(f[6])
	for k := time.Duration(0); from+k*every <= to; k++ {
		var lines []string
		for _, l := range body {
			lines = append(lines, growing.ReplaceAllStringFunc(l, func(v string) string {
				a, b, _ := strings.Cut(v, "+")
				return strconv.FormatFloat(s.number(a)+s.number(b)*float64(k), 'f', -1, 64)
			}))
		}
		message := []string{f[0], "at", (from + k*every).String()}
		if len(f) == 11 {
			message = append(message, "stamp", (s.duration(f[8]) + k*s.duration(f[10])).String())
		}
		s.flush(message, lines)
	}
}

func (s *script) sample(b *Batch, d *described, line string) {
	end := strings.LastIndex(line, "}") + 1
	if end == 0 {
		end = strings.Index(line, " ")
	}
	m, err := parser.ParseMetric(line[:end])
	if err != nil {
		s.fatal("%s: %v", line, err)
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(line[:end]))
	sample := Sample{Key: h.Sum64(), Timestamp: b.Timestamp, Kind: Counter}
	f := strings.Fields(line[end:])
	switch f[0] {
	case "hist":
		sample.Kind, sample.First = Histogram, uint32(len(b.Buckets))
	case "summary":
		sample.Kind, sample.First = Summary, uint32(len(b.Quantiles))
	case "gauge":
		sample.Key += 2
		sample.Kind, sample.Value = Gauge, s.number(f[1])
		f = f[:1]
	default:
		sample.Key++
		sample.Value = s.number(f[0])
	}
	for _, o := range f[1:] {
		k, v, bucket := strings.Cut(o, ":")
		switch {
		case strings.HasPrefix(o, "n="):
			sample.Count = uint64(s.number(o[2:]))
		case strings.HasPrefix(o, "sum="):
			sample.Value = s.number(o[4:])
		case bucket:
			b.Buckets = append(b.Buckets, Bucket{UpperBound: s.number(k), Count: uint64(s.number(v))})
		default:
			b.Quantiles = append(b.Quantiles, s.number(o))
		}
	}
	switch sample.Kind {
	case Histogram:
		sample.Last = uint32(len(b.Buckets))
	case Summary:
		for q := len(b.Quantiles); len(b.Quantiles) < int(sample.First)+10; {
			b.Quantiles = append(b.Quantiles, b.Quantiles[q-1])
		}
		sample.Last = uint32(len(b.Quantiles))
	}
	b.Samples = append(b.Samples, sample)
	*d = append(*d, m)
}

// described is the names and labels of a batch's samples.
type described []labels.Labels

func (d described) Describe(i int) (string, []Label, error) {
	var ls []Label
	d[i].Range(func(l labels.Label) {
		if l.Name != model.MetricNameLabel {
			ls = append(ls, Label{l.Name, l.Value})
		}
	})
	if d[i].Get("unreadable") != "" {
		return "", nil, fmt.Errorf("unreadable")
	}
	return d[i].Get(model.MetricNameLabel), ls, nil
}

func (s *script) compare(expr string, got []Value, body []string) {
	format := func(ls string, v float64) string { return ls + " " + strconv.FormatFloat(v, 'g', 9, 64) }
	want, have := []string{}, []string{}
	for _, l := range body {
		l = strings.TrimSpace(l)
		if l == "none" {
			continue
		}
		i := strings.LastIndex(l, " ")
		ls := strings.TrimSpace(l[:i])
		if ls == "=" {
			ls = "{}"
		} else {
			m, err := parser.ParseMetric(ls)
			if err != nil {
				s.fatal("%s: %v", l, err)
			}
			ls = m.String()
		}
		want = append(want, format(ls, s.number(l[i+1:])))
	}
	for _, v := range got {
		have = append(have, format(v.Labels.String(), v.V))
	}
	slices.Sort(want)
	slices.Sort(have)
	if d := cmp.Diff(want, have); d != "" {
		s.t.Errorf("%s: %s (-want +got)\n%s", s.at, expr, d)
	}
}

func (s *script) sleepUntil(offset string) time.Time {
	at := s.store.started.Add(s.duration(offset))
	if d := time.Until(at); d > 0 {
		time.Sleep(d)
	}
	return at
}

func (s *script) duration(v string) time.Duration {
	d, err := time.ParseDuration(v)
	if err != nil {
		s.fatal("%v", err)
	}
	return d
}

func (s *script) number(v string) float64 {
	if v == "NaN" {
		return math.NaN()
	}
	n, err := strconv.ParseFloat(v, 64)
	if err != nil {
		s.fatal("%v", err)
	}
	return n
}
