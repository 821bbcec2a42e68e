package promapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/api"
	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/meshpulse/meshpulse/aggregator"
)

// mesh is a store that three pods have reported to for five minutes: two of podinfo, one of which
// ends after four minutes, and one of a gateway that calls them.
type mesh struct {
	store *aggregator.Store
	now   time.Time
}

// series describes the series of one pod of the mesh.
type series []struct {
	name   string
	labels map[string]string
}

func (s series) Describe(i int) (string, []aggregator.Label, error) {
	var ls []aggregator.Label
	for name, value := range s[i].labels {
		ls = append(ls, aggregator.Label{Name: name, Value: value})
	}
	return s[i].name, ls, nil
}

func newMesh(t *testing.T) mesh {
	t.Helper()
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	m := mesh{store, store.Started().Add(5 * time.Minute).Truncate(time.Millisecond)} // as times are on the wire
	m.send("podinfo-a", "destination", 5*time.Minute, 20)
	m.send("podinfo-b", "destination", 4*time.Minute, 40)
	m.send("gateway", "source", 5*time.Minute, 60)
	return m
}

// send reports requests of a second with two codes, of 5 and of 50 ms.
func (m mesh) send(pod, reporter string, until time.Duration, perSecond float64) {
	workload, _, _ := strings.Cut(pod, "-")
	st := m.store.Connect(aggregator.Pod{Namespace: "test", Name: pod, Workload: workload, FlushInterval: 5 * time.Second})
	defer st.Close()
	var of series
	for _, code := range []string{"200", "503"} {
		for _, name := range []string{"istio_requests_total", "istio_request_duration_milliseconds"} {
			of = append(of, struct {
				name   string
				labels map[string]string
			}{name, map[string]string{
				"reporter": reporter, "response_code": code, "destination_workload": "podinfo", "destination_workload_namespace": "test", "destination_service_name": "podinfo",
			}})
		}
	}
	total := [2]float64{}
	for at := time.Duration(0); at < until; at += 5 * time.Second {
		arrival := m.store.Started().Add(at)
		b := &aggregator.Batch{Timestamp: arrival.UnixMilli()}
		for i, share := range []float64{0.9, 0.1} {
			n := math.Round(5 * perSecond * share)
			total[i] += n
			first := uint32(len(b.Buckets))
			b.Buckets = append(b.Buckets, aggregator.Bucket{UpperBound: 5, Count: uint64(n / 2)}, aggregator.Bucket{UpperBound: 50, Count: uint64(n)})
			b.Samples = append(b.Samples,
				aggregator.Sample{Key: uint64(2*i + 1), Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: total[i]},
				aggregator.Sample{Key: uint64(2*i + 2), Timestamp: b.Timestamp, Kind: aggregator.Histogram, Count: uint64(n), Value: 25 * n, First: first, Last: first + 2})
		}
		if err := st.Commit(arrival, b, of); err != nil {
			panic(err)
		}
	}
}

// serve serves the API over the mesh, and returns Prometheus' own client of it.
func (m mesh) serve(t *testing.T, change ...func(*Options)) (v1.API, *httptest.Server) {
	t.Helper()
	o := Options{Store: m.store, Now: func() time.Time { return m.now }, Version: "test"}
	for _, c := range change {
		c(&o)
	}
	server := httptest.NewServer(New(o))
	t.Cleanup(server.Close)
	client, err := api.NewClient(api.Config{Address: server.URL + o.Prefix})
	if err != nil {
		t.Fatal(err)
	}
	return v1.NewAPI(client), server
}

// expressions are as dashboards ask them.
var expressions = []string{
	`1+1`, `vector(1)`, `scalar(sum(rate(istio_requests_total[1m])))`, `time()`,
	`istio_requests_total`,
	`round(sum(irate(istio_requests_total{reporter="destination",destination_workload=~"podinfo"}[5m])), 0.001)`,
	`sum(rate(istio_requests_total{reporter="destination",response_code!~"5.*"}[1m])) / sum(rate(istio_requests_total{reporter="destination"}[1m]))`,
	`histogram_quantile(0.95, sum(irate(istio_request_duration_milliseconds_bucket{reporter="source"}[1m])) by (le))`,
	`histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds[1m])))`,
	`sum(rate(istio_request_duration_milliseconds[1m])) by (pod)`,
	`label_join((sum(rate(istio_requests_total[2m])) by (pod, namespace)), "of", "/", "namespace", "pod")`,
	`topk(1, sum by (pod) (increase(istio_requests_total[1m])))`,
	`absent(istio_tcp_received_bytes_total)`, `istio_tcp_received_bytes_total`, `0/0`,
	`max_over_time(sum(rate(istio_requests_total[1m]))[2m:15s])`,
	`count({__name__=~"istio_.*"}) by (__name__)`,
	`sum(rate(istio_requests_total{destination_workload="podinfo"}[1m] offset 30s))`,
}

// ofUsers are those of real users that are PromQL, where they are at hand.
func ofUsers(t *testing.T) (exprs []string) {
	t.Helper()
	for _, q := range corpus(t) {
		if _, err := parser.ParseExpr(q.expr); err == nil {
			exprs = append(exprs, q.expr)
		}
	}
	return exprs
}

// corpusQuery is an expression of a real user: where it is from, and whether it can be served.
type corpusQuery struct{ group, verdict, expr string }

// corpus is what real users ask; nil where it is not at hand.
func corpus(t *testing.T) (all []corpusQuery) {
	t.Helper()
	text, err := os.ReadFile("../../../shared/corpus/queries.tsv")
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	_, lines, _ := strings.Cut(string(text), "\n") // below the titles
	for line := range strings.Lines(lines) {
		columns := strings.Split(line, "\t")
		all = append(all, corpusQuery{columns[1], columns[2], columns[4]})
	}
	return all
}

func TestAnswersAreThoseOfPrometheusEngine(t *testing.T) {
	m := newMesh(t)
	client, _ := m.serve(t)
	engine := promql.NewEngine(promql.EngineOpts{
		MaxSamples: 1e7, Timeout: time.Minute, EnableAtModifier: true, EnableNegativeOffset: true,
		NoStepSubqueryIntervalFn: func(int64) int64 { return time.Minute.Milliseconds() },
	})
	over := m.store.Queryable(1e7)
	ctx := context.Background()
	for _, expr := range append(expressions, ofUsers(t)...) {
		at := m.now.Add(-20 * time.Second)
		q, err := engine.NewInstantQuery(ctx, over, nil, expr, at)
		if err != nil {
			t.Fatal(err)
		}
		want := q.Exec(ctx)
		got, _, _, err := client.Query(ctx, expr, at)
		if failed := fmt.Sprint(want.Err); err != nil && want.Err != nil && strings.HasSuffix(err.Error(), failed) {
			continue // of both, and for the same reason
		}
		if err != nil || want.Err != nil {
			t.Fatalf("%s: %v, the engine: %v", expr, err, want.Err)
		}
		same(t, expr, got, want)
		q.Close()
		q, err = engine.NewRangeQuery(ctx, over, nil, expr, m.now.Add(-2*time.Minute), m.now, 15*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		want = q.Exec(ctx)
		got, _, _, err = client.QueryRange(ctx, expr, v1.Range{Start: m.now.Add(-2 * time.Minute), End: m.now, Step: 15 * time.Second})
		if err != nil || want.Err != nil {
			t.Fatalf("%s as a range: %v, the engine: %v", expr, err, want.Err)
		}
		same(t, expr+" as a range", got, want)
		q.Close()
	}
}

// same compares what Prometheus' client has read with what its engine says.
func same(t *testing.T, expr string, got model.Value, want *promql.Result) {
	t.Helper()
	text, err := json.Marshal(want.Value)
	if err != nil {
		t.Fatal(err)
	}
	into := reflect.New(reflect.TypeOf(got))
	if err := json.Unmarshal(text, into.Interface()); err != nil {
		t.Fatalf("%s: %s: %v", expr, text, err)
	}
	engines := into.Elem().Interface().(model.Value)
	for _, v := range []model.Value{got, engines} {
		if vector, ok := v.(model.Vector); ok { // whose order is nobody's
			sort.Sort(vector)
		}
	}
	if a, b := got.String(), engines.String(); a != b {
		t.Errorf("%s:\n%s\nthe engine says\n%s", expr, a, b)
	}
}

func TestListings(t *testing.T) {
	m := newMesh(t)
	client, _ := m.serve(t)
	ctx, from := context.Background(), m.now.Add(-time.Minute)
	names, _, _, err := client.LabelValues(ctx, "__name__", nil, from, m.now)
	if err != nil {
		t.Fatal(err)
	}
	const duration = "istio_request_duration_milliseconds"
	if want := (model.LabelValues{duration + "_bucket", duration + "_count", duration + "_sum", "istio_requests_total"}); !reflect.DeepEqual(names, want) {
		t.Errorf("names %v, want %v: native histograms are listed by name alone", names, want)
	}
	pods, _, _, err := client.LabelValues(ctx, "pod", nil, from.Add(30*time.Second), m.now)
	if want := (model.LabelValues{"gateway", "podinfo-a"}); err != nil || !reflect.DeepEqual(pods, want) {
		t.Errorf("pods %v, %v, want %v: podinfo-b has ended", pods, err, want)
	}
	codes, _, _, err := client.LabelValues(ctx, "response_code", []string{`istio_requests_total{reporter="source"}`}, from, m.now)
	if want := (model.LabelValues{"200", "503"}); err != nil || !reflect.DeepEqual(codes, want) {
		t.Errorf("codes %v, %v, want %v", codes, err, want)
	}
	labelNames, _, _, err := client.LabelNames(ctx, []string{"istio_requests_total"}, from, m.now)
	if want := (model.LabelNames{"__name__", "destination_service_name", "destination_workload", "destination_workload_namespace", "namespace", "pod", "reporter", "response_code"}); err != nil || !reflect.DeepEqual(labelNames, want) {
		t.Errorf("label names %v, %v, want %v", labelNames, err, want)
	}
	for match, want := range map[string]int{
		`istio_requests_total{response_code="200"}`:    3,
		`{__name__=~"istio_requests.*",pod="gateway"}`: 2,
		duration: 6, // native, by its name
		duration + `_bucket{pod="gateway",response_code="200",le="+Inf"}`: 1,
		`{__name__=~".*milliseconds",pod="gateway"}`:                      0,
	} {
		found, _, _, err := client.Series(ctx, []string{match}, m.now.Add(-4*time.Minute), m.now)
		if err != nil || len(found) != want {
			t.Errorf("%s: %d series, %v, want %d: %v", match, len(found), err, want, found)
		}
	}
	some, warnings, _, err := client.Series(ctx, []string{"istio_requests_total"}, from, m.now, v1.WithLimit(1))
	if err != nil || len(some) != 1 || len(warnings) != 1 {
		t.Errorf("limit=1: %v, %v, %v", some, warnings, err)
	}
	metadata, err := client.Metadata(ctx, "", "")
	if err != nil || len(metadata) != 2 || metadata["istio_requests_total"][0].Type != v1.MetricTypeCounter || metadata[duration][0].Type != v1.MetricTypeHistogram {
		t.Errorf("metadata %v, %v", metadata, err)
	}
}

func TestStatusIsWhatClientsRead(t *testing.T) {
	client, server := newMesh(t).serve(t, func(o *Options) { o.Prefix, o.Retention = "/mesh", time.Hour })
	ctx := context.Background()
	if b, err := client.Buildinfo(ctx); err != nil || !strings.HasPrefix(b.Version, "3.") {
		t.Errorf("build %+v, %v", b, err)
	}
	if r, err := client.Runtimeinfo(ctx); err != nil || r.StorageRetention != "1h" {
		t.Errorf("runtime %+v, %v: Kiali offers no more than the retention", r, err)
	}
	if c, err := client.Config(ctx); err != nil || !strings.Contains(c.YAML, "scrape_interval: 5s") || strings.Contains(c.YAML, "scrape_configs") {
		t.Errorf("config %+v, %v", c, err)
	}
	for path, want := range map[string]int{"/mesh/-/healthy": 200, "/mesh/-/ready": 200, "/-/healthy": 404, "/mesh/api/v1/rules": 404, "/mesh/api/v1/format_query?query=sum(a)by(b)": 200} {
		if code, text := get(t, server.URL+path); code != want {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
}

func get(t *testing.T, url string, headers ...string) (code int, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return do(t, r)
}

func do(t *testing.T, r *http.Request) (code int, text string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestErrorsAreOfPrometheusForm(t *testing.T) {
	_, server := newMesh(t).serve(t, func(o *Options) { o.MaxSamples = 20 })
	for query, want := range map[string]struct {
		code int
		kind string
	}{
		"/api/v1/query?query=sum(":                                                {400, "bad_data"},
		"/api/v1/query?query=1&time=yesterday":                                    {400, "bad_data"},
		"/api/v1/query?query=1&limit=-1":                                          {400, "bad_data"},
		"/api/v1/query?query=1&timeout=soon":                                      {400, "bad_data"},
		"/api/v1/query?query=1&on_incomplete=error":                               {400, "bad_data"},
		"/api/v1/query?query=istio_requests_total[5m]":                            {422, "execution"},
		"/api/v1/query_range?query=1&start=2&end=1&step=1":                        {400, "bad_data"},
		"/api/v1/query_range?query=1&start=0&end=1&step=0":                        {400, "bad_data"},
		"/api/v1/query_range?query=1&start=0&end=1000000&step=1":                  {400, "bad_data"},
		"/api/v1/query_range?query=istio_requests_total[5m]&start=0&end=1&step=1": {400, "bad_data"},
		"/api/v1/series":                                 {400, "bad_data"},
		"/api/v1/series?match[]={}":                      {400, "bad_data"},
		"/api/v1/labels?match[]=sum(a)":                  {400, "bad_data"},
		"/api/v1/series?match[]={__name__=~\"istio.*\"}": {422, "execution"},
	} {
		target, values, _ := strings.Cut(query, "?")
		parsed, err := url.ParseQuery(values)
		if err != nil {
			t.Fatal(err)
		}
		code, text := get(t, server.URL+target+"?"+parsed.Encode())
		var told response
		if err := json.Unmarshal([]byte(text), &told); err != nil || code != want.code || told.ErrorType != want.kind || told.Error == "" || told.Status != "error" {
			t.Errorf("%s: %d %s, want %d %s", query, code, text, want.code, want.kind)
		}
	}
}

// Of what is kept only where an HPA asks there may be rows of some pods, or of none: neither is
// all.
func TestWhatIsNotKeptForWhoeverAsksIsTold(t *testing.T) {
	store, err := aggregator.New(aggregator.Config{Keep: []string{"istio_requests_total"}})
	if err != nil {
		t.Fatal(err)
	}
	client, _ := mesh{store, store.Started().Add(time.Minute)}.serve(t)
	for expr, want := range map[string]int{`sum(rate(istio_request_bytes_sum[1m]))`: 1, `sum(rate(istio_requests_total[1m]))`: 0} {
		_, warnings, _, err := client.Query(context.Background(), expr, store.Started())
		if err != nil || len(warnings) != want || want > 0 && !strings.Contains(warnings[0], "istio_request_bytes is kept") {
			t.Errorf("%s: %v, %v", expr, warnings, err)
		}
	}
}

func TestIncompleteIsAWarningOrAnError(t *testing.T) {
	m := newMesh(t)
	client, server := m.serve(t, func(o *Options) {
		o.Held = func(_ context.Context, expr string, _ time.Time) string {
			if q, err := m.store.Query(expr); err == nil && strings.Contains(expr, "podinfo") && q.Coverage(m.now).Silent > 0 {
				return "1 of 2 sidecars is silent"
			}
			return ""
		}
	})
	const ofPodinfo = `istio_requests_total{destination_workload="podinfo",reporter="destination"}`
	for _, expr := range []string{`sum(rate(` + ofPodinfo + `[1m]))`, ofPodinfo + `[1m]`, `sum(` + ofPodinfo + `)[1m:10s]`} {
		_, warnings, _, err := client.Query(context.Background(), expr, m.now)
		if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "report no more") {
			t.Errorf("%s: %v, %v: podinfo-b has been silent for a minute", expr, warnings, err)
		}
		if code, text := get(t, server.URL+"/api/v1/query?on_incomplete=error&query="+url.QueryEscape(expr)); code != 503 || !strings.Contains(text, "1 of 2") {
			t.Errorf("%s: %d %s", expr, code, text)
		}
	}
	if _, warnings, _, err := client.Query(context.Background(), `sum(rate(istio_requests_total{pod="gateway"}[1m]))`, m.now); err != nil || len(warnings) > 0 {
		t.Errorf("%v, %v", warnings, err)
	}
	if code, text := get(t, server.URL+"/api/v1/query?on_incomplete=error&query=vector(1)"); code != 200 {
		t.Errorf("%d %s", code, text)
	}
}

func TestOnlyWhoBearsTheTokenAsks(t *testing.T) {
	token := "secret"
	_, server := newMesh(t).serve(t, func(o *Options) { o.Token = func() string { return token } })
	for _, c := range []struct {
		header string
		want   int
	}{{"", 401}, {"Bearer wrong", 401}, {"secret", 401}, {"Bearer secret", 200}} {
		if code, text := get(t, server.URL+"/api/v1/query?query=1", "Authorization", c.header); code != c.want {
			t.Errorf("%q: %d %s", c.header, code, text)
		}
	}
	token = ""
	if code, _ := get(t, server.URL+"/api/v1/query?query=1", "Authorization", "Bearer "); code != 401 {
		t.Errorf("%d where there is no token", code)
	}
}

func TestPastTheLimitItIsBusy(t *testing.T) {
	running, release := make(chan struct{}), make(chan struct{})
	a := New(Options{Store: newMesh(t).store, MaxConcurrent: 1, MaxWaiting: 1, Held: func(context.Context, string, time.Time) string {
		running <- struct{}{}
		<-release
		return "over"
	}})
	ask := func(query string) (code int) {
		w := httptest.NewRecorder()
		a.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1/query?"+query, http.NoBody))
		return w.Code
	}
	first, second := make(chan int), make(chan int)
	go func() { first <- ask("query=1&on_incomplete=error") }()
	<-running
	go func() { second <- ask("query=1&timeout=0.001") }()
	if code := <-second; code != 503 {
		t.Errorf("one that waits until its time is over: %d", code)
	}
	close(release)
	if code := <-first; code != 503 {
		t.Errorf("the one that runs: %d", code)
	}
	if code := ask("query=1"); code != 200 {
		t.Errorf("afterwards: %d", code)
	}
}

// An expression of a few kilobytes takes neither the CPU for minutes, which no timeout ends, nor
// the memory.
func TestExpressionsThatAreNestedTooDeepAreRefused(t *testing.T) {
	_, server := newMesh(t).serve(t)
	nested := func(depth int) string { return strings.Repeat("(", depth) + "1" + strings.Repeat(")", depth) }
	sum := "1" + strings.Repeat("+1", 1000)
	for path, more := range map[string]string{"query": "", "query_range": "&start=0&end=10&step=1", "format_query": ""} {
		for name, c := range map[string]struct {
			expr, want string
			code       int
		}{
			"deep":      {nested(100), `"success"`, 200},
			"too deep":  {nested(1000), "nested more than 500 deep", 400},
			"to a side": {sum, "nested more than 500 deep", 400},
			"too long":  {nested(10_000), "it has 20001 bytes", 400},
		} {
			resp, err := http.Post(server.URL+"/api/v1/"+path, "application/x-www-form-urlencoded", strings.NewReader("query="+url.QueryEscape(c.expr)+more)) //nolint:noctx // of the test's own server
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != c.code || !strings.Contains(string(body), c.want) {
				t.Errorf("%s, %s: %d %.200s, %v", path, name, resp.StatusCode, body, err)
			}
		}
	}
}

func TestAStoreOfAPartOfThePodsIsTold(t *testing.T) {
	m := newMesh(t)
	client, _ := m.serve(t, func(o *Options) { o.Partial = func() string { return "a part" } })
	_, warnings, _, err := client.Query(t.Context(), "sum(rate(istio_requests_total[1m]))", m.now)
	if err != nil || !reflect.DeepEqual(warnings, v1.Warnings{"incomplete: a part"}) {
		t.Errorf("%v, %v", warnings, err)
	}
	_, server := m.serve(t, func(o *Options) {
		o.Partial = func() string { return "a part" }
		o.Held = func(context.Context, string, time.Time) string { return "" }
	})
	if code, body := get(t, server.URL+"/api/v1/query?query=1&on_incomplete=error"); code != 503 || !strings.Contains(body, "a part") {
		t.Errorf("%d %s", code, body)
	}
}

func TestFederateIsReadByPrometheus(t *testing.T) {
	m := newMesh(t)
	_, server := m.serve(t)
	code, text := get(t, server.URL+"/federate?"+url.Values{"match[]": {`{__name__=~"istio_.*",pod=~"podinfo-.*"}`, `istio_requests_total`}}.Encode())
	if code != 200 {
		t.Fatalf("%d %s", code, text)
	}
	p, err := textparse.New([]byte(text), "text/plain", labels.NewSymbolTable(), textparse.ParserOptions{})
	if err != nil {
		t.Fatal(err)
	}
	totals := map[string]float64{}
	for {
		entry, err := p.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if entry != textparse.EntrySeries {
			continue
		}
		var ls labels.Labels
		p.Labels(&ls)
		_, at, v := p.Series()
		if at == nil || *at != m.now.Add(-5*time.Second).UnixMilli() {
			t.Errorf("%s is of %v, not of the newest flush", ls, at)
		}
		if ls.Get("__name__") == "istio_requests_total" && ls.Get("response_code") == "200" {
			totals[ls.Get("pod")] = v
		}
	}
	if want := map[string]float64{"podinfo-a": 60 * 90, "gateway": 60 * 270}; !reflect.DeepEqual(totals, want) {
		t.Errorf("totals %v, want %v: podinfo-b has ended", totals, want)
	}
	if code, text := get(t, server.URL+"/federate"); code != 400 || bytes.Contains([]byte(text), []byte("{")) {
		t.Errorf("without match[]: %d %s", code, text)
	}
}
