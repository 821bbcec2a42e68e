package aggregator

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// reads says who may read whom: author/namespace.
type reads map[string]bool

func (r reads) MayRead(author, namespace string) bool { return r[author+"/"+namespace] }

// twoNamespaces is a world of the author's namespace, mine, and of one that is none of its
// business, theirs. What mine may see is the same in all worlds; what it may not is another thing
// in each.
type twoNamespaces struct {
	*Store
	pods []*worldPod
}

// worldPod reports series. Those of common differ in nothing from world to world.
type worldPod struct {
	stream         *Stream
	common, secret []worldSeries
	r, other       *rand.Rand
}

type worldSeries struct {
	labels labels.Labels
	value  uint64
}

func newTwoNamespaces(t *testing.T, world uint64, reading Reading) *twoNamespaces {
	s, err := New(Config{Retention: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if reading != nil {
		s.SetReading(reading)
	}
	w := &twoNamespaces{Store: s}
	series := func(name, reporter, called, workload, code string) worldSeries {
		ls := labels.NewBuilder(labels.FromStrings(model.MetricNameLabel, name, "code", code, "from", reporter, "reporter", reporter, "destination_workload", workload))
		if called != "" {
			ls.Set(labelDestinationNamespace, called)
		}
		return worldSeries{labels: ls.Labels()}
	}
	const requests, took = "istio_requests_total", durationsName
	other := rand.New(rand.NewPCG(world, 7))
	add := func(namespace, name string, common []worldSeries, secret []worldSeries) {
		w.pods = append(w.pods, &worldPod{
			stream: s.Connect(Pod{Namespace: namespace, Name: name, Workload: "w", FlushInterval: 5 * time.Second}), common: common, secret: secret,
			r: rand.New(rand.NewPCG(uint64(len(w.pods)), 9)), other: other,
		})
	}
	for i := range 2 {
		add("mine", fmt.Sprintf("pod-%d", i), []worldSeries{
			series(requests, "destination", "mine", "w", "200"), series(took, "destination", "mine", "w", "200"),
			series(requests, "source", "theirs", "v", "404"), series(requests, "source", "", "v", "404"),
		}, nil)
	}
	secrets := func(n int) []worldSeries {
		all := []worldSeries{
			series(requests, "destination", "theirs", "w", "200"), series(took, "destination", "theirs", "w", "200"), series(requests, "source", "theirs", "w", "500"),
			series(requests, "source", "unknown", "w", "200"), series(requests, "waypoint", "theirs", "w", "200"), series(took, "source", "", "v", "500"),
			series("secret_total", "destination", "theirs", "w", "200"),
		}
		if n > len(all)/2 {
			all[0].labels = labels.NewBuilder(all[0].labels).Set("secret", "x").Labels()
		}
		return all[:n]
	}
	// A pod of theirs that calls mine, and others besides; and pods that have nothing to do with
	// mine.
	add("theirs", "pod-1", []worldSeries{series(requests, "source", "mine", "w", "200"), series(took, "source", "mine", "w", "200")}, secrets(int(world)%8))
	for i := range world % 3 {
		add("theirs", fmt.Sprintf("secret-%d", i), nil, secrets(int(2+world+i)%8))
	}
	return w
}

// flush has every pod report.
func (w *twoNamespaces) flush(t *testing.T, now time.Time) {
	for i, p := range w.pods {
		b, d := &Batch{Timestamp: now.UnixMilli()}, described(nil)
		send := func(of []worldSeries, r *rand.Rand, space uint64) {
			for j := range of {
				n, key := uint64(r.IntN(100)), space+uint64(j)
				if of[j].value += n; strings.HasPrefix(of[j].labels.Get(model.MetricNameLabel), durationsName) {
					first := uint32(len(b.Buckets))
					b.Buckets = append(b.Buckets, Bucket{UpperBound: 5, Count: n / 2}, Bucket{UpperBound: 10, Count: n})
					b.Samples = append(b.Samples, Sample{Key: key, Timestamp: b.Timestamp, Kind: Histogram, Count: n, Value: float64(5 * n), First: first, Last: first + 2})
				} else {
					b.Samples = append(b.Samples, Sample{Key: key, Timestamp: b.Timestamp, Kind: Counter, Value: float64(of[j].value)})
				}
				d = append(d, of[j].labels)
			}
		}
		send(p.common, p.r, 1)
		send(p.secret, p.other, 100)
		if err := p.stream.Commit(now, b, d); err != nil {
			t.Fatalf("pod %d: %v", i, err)
		}
	}
}

// evil expressions go at what mine may not see by name, by what there is, by what is missing, by
// who counts.
func evil() []string {
	exprs := []string{
		`count({__name__=~".+"})`, `group by (namespace, pod, destination_workload_namespace) ({__name__=~".*_total"})`, `topk(3, istio_requests_total)`,
		`absent(secret_total)`, `absent(istio_requests_total{secret="x"})`, `vector(scalar(secret_total)) or vector(1)`, `absent_over_time(secret_total[1m])`,
		`sum(rate(secret_total[1m]))`, `sum(rate(istio_requests_total{secret="x"}[1m]))`, `sum(rate(istio_requests_total{secret=~".+"}[1m])) or vector(0)`,
		`vector(1) unless on () istio_requests_total{namespace="theirs"}`, `count_values("v", istio_requests_total)`, `sort_desc(istio_requests_total)`,
		`label_replace(istio_requests_total{namespace="theirs"}, "destination_workload_namespace", "mine", "", "")`,
		`max_over_time(sum(istio_requests_total)[1m:5s])`, `sum(istio_requests_total offset 10s)`, `timestamp(istio_requests_total{pod=~"secret.*"})`,
		`sum(rate(istio_requests_total{destination_workload_namespace="unknown"}[1m]))`, `sum(rate(istio_requests_total{destination_workload_namespace=""}[1m]))`,
		`histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds[1m])))`, `histogram_count(sum(rate(istio_request_duration_milliseconds[1m])))`,
		`count(istio_request_duration_milliseconds_bucket{le="7"})`, `sum(rate(istio_requests_total{namespace!="mine"}[1m]))`,
		`sum(rate(istio_requests_total{destination_workload_namespace!~"mine|"}[1m])) / sum(rate(istio_requests_total[1m]))`,
		`sum(rate(istio_requests_total{reporter="source",source_workload_namespace="theirs"}[1m]))`, `scalar(count(istio_requests_total)) > bool 3`,
	}
	for _, by := range []string{`namespace="theirs"`, `destination_workload_namespace="theirs"`, `destination_workload="w"`, `pod="pod-1"`, `pod=~"secret.*"`, `reporter="waypoint"`} {
		exprs = append(exprs, `sum(rate(istio_requests_total{`+by+`}[30s]))`, `sum(rate(istio_request_duration_milliseconds_count{`+by+`}[30s]))`, `absent(istio_requests_total{`+by+`})`,
			`histogram_quantile(0.5, sum(rate(istio_request_duration_milliseconds_bucket{`+by+`}[1m])) by (le))`)
	}
	return exprs
}

// said is all that an author can learn of an expression.
type said struct {
	err     bool
	answer  Answer
	reports []string
	surge   Surge
	plan    bool
}

func (w *twoNamespaces) say(t *testing.T, q *Query, d *SurgeDetector, at time.Time) said {
	a, err := q.Eval(t.Context(), at)
	s := said{err: err != nil, answer: a, reports: q.ReportingWorkloads(at, true), plan: q.plan != nil}
	slices.SortFunc(s.answer.Partial, func(a, b PodState) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	slices.SortFunc(s.answer.Bearing, func(a, b *Pod) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	if d != nil {
		s.surge = d.At(at)
	}
	return s
}

// differs says in what two worlds differ, "" if they do not.
func (s said) differs(o said) string {
	if d := difference(s.answer.Values, o.answer.Values); d != "" {
		return d
	}
	s.answer.Values, o.answer.Values = nil, nil
	if !reflect.DeepEqual(s, o) {
		return fmt.Sprintf("%+v, and %+v", s, o)
	}
	return ""
}

// whatMineSees compares what is said to an author in worlds that differ in what it may not see, and
// returns how often that differs.
func whatMineSees(t *testing.T, reading Reading, fail func(expr, how string)) (asked, compiled int) {
	worlds := make([]*twoNamespaces, 4)
	exprs := evil()
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 5))
		g := expressions{r}
		aim := strings.NewReplacer(`namespace="test"`, `namespace="theirs"`, `nothing=""`, `destination_workload_namespace="theirs"`, `from="9"`, `from="source"`)
		exprs = append(exprs, aim.Replace(g.next()), aim.Replace(randomExpr(r)))
	}
	asking := make([][]*Query, len(worlds))
	detecting := make([][]*SurgeDetector, len(worlds))
	for i := range worlds {
		w := newTwoNamespaces(t, []uint64{0, 1, 5, 7}[i], reading)
		worlds[i] = w
		register := func() {
			for _, expr := range exprs {
				q, err := w.RegisterFor("mine", expr)
				if err != nil {
					t.Fatal(err)
				}
				d, _ := q.DetectSurges(SurgeConfig{})
				asking[i], detecting[i] = append(asking[i], q), append(detecting[i], d)
			}
		}
		if i != 1 { // what is registered before its series come is kept up to date with them
			register()
		}
		w.flush(t, time.Now())
		if i == 1 {
			register()
		}
	}
	for range 20 {
		time.Sleep(5 * time.Second)
		for _, w := range worlds {
			w.flush(t, time.Now())
		}
	}
	time.Sleep(rowCloseDelay + time.Second)
	for j, expr := range exprs {
		for _, silence := range []time.Duration{0, 15 * time.Second} { // all silent, then
			at := time.Now().Add(silence)
			for _, registered := range []bool{true, false} {
				how := ""
				for range 10 { // the engine adds up in the order of a Go map, and a comparison may make much of a last digit
					var all []said
					for i, w := range worlds {
						q, d := asking[i][j], detecting[i][j]
						if !registered {
							like, err := q.Like(expr)
							if err != nil {
								t.Fatal(err)
							}
							q, d = like, nil
						}
						all = append(all, w.say(t, q, d, at))
					}
					how = ""
					for _, s := range all[1:] {
						if d := all[0].differs(s); d != "" {
							how = d
						}
					}
					if all[0].plan {
						compiled++
					}
					if how == "" {
						break
					}
				}
				if asked++; how != "" {
					fail(expr, how)
				}
			}
		}
	}
	return asked, compiled
}

// Whatever an author asks, and in whichever form, what it is told depends on nothing that it may
// not see.
func TestAQueryIsToldNothingOfWhatItsAuthorMayNotSee(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, compiled := whatMineSees(t, reads{}, func(expr, how string) { t.Errorf("%s: %s", expr, how) })
		if asked < 300 || compiled < 100 {
			t.Errorf("%d expressions were asked, %d of them compiled: too few", asked, compiled)
		}
	})
	synctest.Test(t, func(t *testing.T) { // the same where everything is seen, so that the comparison is known to tell
		told := 0
		asked, _ := whatMineSees(t, nil, func(string, string) { told++ })
		if told < asked/2 {
			t.Errorf("with everything to be seen %d of %d expressions tell the worlds apart: it is not compared", told, asked)
		}
	})
}

// What an author sees is what its namespace's pods report, requests to its namespace, and
// namespaces that let it.
func TestAQuerySeesItsOwnAndWhatItMay(t *testing.T) {
	const one = `count(count by (namespace, from, destination_workload_namespace, code, pod) (istio_requests_total))`
	synctest.Test(t, func(t *testing.T) {
		for name, tc := range map[string]struct {
			author  string
			reading Reading
			want    float64
			beyond  string
		}{
			"everything":                    {"mine", nil, 15, "theirs"},
			"nobody in particular":          {"", reads{}, 15, ""},
			"its own, and calls to it":      {"mine", reads{}, 7, ""},
			"a namespace that lets it":      {"mine", reads{"mine/theirs": true}, 15, ""},
			"a namespace that lets another": {"mine", reads{"other/theirs": true}, 7, ""},
			// All that concerns theirs: its pods, and what pods of mine say of calls to it.
			"from the other side": {"theirs", reads{}, 9 + 2, ""},
			"none of it":          {"other", reads{}, 0, ""},
			"who is called like a peer without proxy": {"unknown", reads{}, 0, ""},
		} {
			w := newTwoNamespaces(t, 5, tc.reading)
			prepared, err := w.RegisterFor(tc.author, one)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second)
			w.flush(t, time.Now())
			time.Sleep(rowCloseDelay + time.Second)
			fresh, err := w.QueryFor(tc.author, one)
			if err != nil {
				t.Fatal(err)
			}
			for _, q := range []*Query{prepared, fresh} {
				a, err := q.Eval(t.Context(), time.Now())
				if err != nil {
					t.Fatal(err)
				}
				got := 0.0
				if len(a.Values) > 0 {
					got = a.Values[0].V
				}
				if got != tc.want || a.Beyond != tc.beyond {
					t.Errorf("%s: %g series and %q beyond its own, want %g and %q", name, got, a.Beyond, tc.want, tc.beyond)
				}
			}
		}
	})
}
