package metricsapi

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// istioOnly is what the default --keep keeps.
func istioOnly(metric string) bool { return strings.HasPrefix(metric, "istio_") }

// A part that can never be there is no 0 and no answer, whatever stands around it.
func TestWhatCanNeverBeThereGivesNoAnswer(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	const there = `sum(rate(istio_requests_total{destination_workload="podinfo",reporter="destination"}[1m]))`
	wholes := map[string]string{
		"alone":                "X",
		"or a constant":        "X or vector(0)",
		"or a constant, on()":  "X or on() vector(0)",
		"a constant before it": "vector(0) or X",
		"scalar":               "scalar(X)",
		"scalar in a vector":   "vector(scalar(X)) or vector(0)",
		"added":                there + " + (X or vector(0))",
		"divides":              there + " / X",
		"divides as a scalar":  there + " / scalar(X)",
		"unless":               there + " unless on() (X > 5)",
		"and":                  there + " and on() X",
		"or":                   there + " or X",
		"compared":             "X > bool 3",
		"a filter":             there + " > on() X",
		"absent":               "absent(X)",
		"in a subquery":        "max_over_time((X or vector(0))[5m:15s])",
		"clamped":              "clamp_min(X or vector(0), 1)",
	}
	parts := map[string]struct{ part, names, event string }{
		"another exporter's metric":   {`sum(rate(http_requests_total{app="podinfo"}[1m]))`, "http_requests_total", "http_requests_total"},
		"a number of pods":            {`count(kube_pod_info{namespace="test"})`, "kube_pod_info", "kube_pod_info"},
		"a count of counts":           {`count(count(container_memory_usage_bytes{namespace="test",pod=~"podinfo.*"}) by (pod))`, "container_memory_usage_bytes", "container_memory_usage_bytes"},
		"one of several names":        {`sum(rate({__name__="envoy_http_downstream_rq_total",pod="x"}[1m]))`, "envoy_http_downstream_rq_total", "envoy_http_downstream_rq_total"},
		"a label of a scrape":         {`sum(rate(istio_requests_total{app="podinfo"}[1m]))`, "app", "label app"},
		"a label by pattern":          {`sum(rate(istio_requests_total{destination_workload="podinfo",job=~".+"}[1m]))`, "job", "label job"},
		"a label that is only denied": {`sum(rate(istio_requests_total{destination_workload="podinfo",tenant!=""}[1m]))`, "tenant", "label tenant"},
		"a reporter of no kind":       {`sum(rate(istio_requests_total{destination_workload="podinfo",reporter="dest"}[1m]))`, "reporter", "reporter"},
	}
	for name, p := range parts {
		for around, whole := range wholes {
			t.Run(name+"/"+around, func(t *testing.T) {
				got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, strings.ReplaceAll(whole, "X", p.part), 10*time.Minute)
				if got.err == "" || !strings.Contains(got.err, p.names) {
					t.Errorf("want an error that names %s, got %s", p.names, got)
				}
				if !got.told(hpas.ReasonNotReported, p.event) {
					t.Errorf("no event about %s: %s", p.event, got)
				}
			})
		}
	}
}

func (a answered) told(reason, part string) bool {
	for _, e := range a.events {
		if e.Reason == reason && strings.Contains(e.Message, part) {
			return true
		}
	}
	return false
}

// Of two ways to ask for the same, the one that there is counts: dashboards ask for both names of a
// metric that was renamed. A name that nobody has is no answer where it is all that there is, or
// where something is made of it.
func TestANameThatNobodyHasButThatMayCome(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	const (
		there = `sum(rate(istio_requests_total{destination_workload="podinfo",reporter="destination"}[1m]))`
		other = `sum(rate(istio_requests{destination_workload="podinfo",reporter="destination"}[1m]))`
	)
	for expr, want := range map[string]string{
		there + " or " + other:  "",
		other + " or " + there:  "",
		other:                   "istio_requests",
		other + " or vector(0)": "istio_requests",
		there + " + (" + other + " or vector(0))":      "istio_requests",
		"scalar(" + other + ")":                        "istio_requests",
		`sum(rate({__name__=~"istio_requests?"}[1m]))`: "istio_requests?",
	} {
		got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, expr, 10*time.Minute)
		if want == "" && (got.err != "" || got.sum == 0 || got.told(hpas.ReasonNotReported, "")) {
			t.Errorf("%s is %s, want its value", expr, got)
		}
		if want != "" && !strings.Contains(got.err, want) {
			t.Errorf("%s is %s, want an error about %s", expr, got, want)
		}
	}
}

// What somebody has asked to be kept, or a Telemetry resource adds, or a series has, may come.
func TestWhatMayComeIsNotWhatCanNeverBeThere(t *testing.T) {
	m := newCallMesh(t)
	ls := ends("destination", "loadtester", "api", "mutual_tls")
	ls["tenant"], ls["request_protocol"], ls["response_code"] = "a", "http", "200"
	m.requests("api-0", ls, 10)
	m.run(5*time.Second, 10*time.Minute)
	keeps := func(metric string) bool { return istioOnly(metric) || strings.HasPrefix(metric, "shop_") }
	const rate = `sum(rate(istio_requests_total{destination_workload="podinfo",reporter="destination",X}[1m]))`
	for expr, outcome := range map[string]string{
		`sum(rate(shop_orders_total[1m])) or vector(0)`:                    "",
		`sum(rate(shop_orders_total[1m]))`:                                 "shop_orders_total", // and missing is not 0
		strings.ReplaceAll(rate, "X", `region="eu"`) + " or vector(0)":     "",                  // --custom-tags
		strings.ReplaceAll(rate, "X", `region="eu"`):                       "",
		strings.ReplaceAll(rate, "X", `tenant="a"`) + " or vector(0)":      "", // another pod's series have it
		strings.ReplaceAll(rate, "X", `tenant="a"`):                        "",
		strings.ReplaceAll(rate, "X", `zone="a"`) + " or vector(0)":        "zone",
		strings.ReplaceAll(rate, "X", `zone!="a"`):                         "", // matches what has none
		strings.ReplaceAll(rate, "X", `zone=~"|a"`):                        "",
		strings.ReplaceAll(rate, "X", `zone=""`):                           "",
		`count(count by (pod) (istio_requests_total{namespace="test"}))`:   "",
		`sum by (zone) (rate(istio_requests_total{namespace="test"}[1m]))`: "",
		`sum(rate(istio_request_bytes_bucket{pod="api-0",le="250"}[1m]))`:  "",
		`sum(rate({__name__=~"istio_requests_total|x",pod="api-0"}[1m]))`:  "",
	} {
		got := m.ask(hpas.Vocabulary{Keeps: keeps, Tags: []string{"region"}}, expr, 10*time.Minute)
		if (got.err == "") != (outcome == "") || !strings.Contains(got.err, outcome) {
			t.Errorf("%s is %s, want error %q", expr, got, outcome)
		}
		if outcome == "" && got.told(hpas.ReasonNotReported, "") {
			t.Errorf("%s is told of: %s", expr, got)
		}
	}
}

// scalar() makes NaN of nothing. A workload that has had no request is 0 all the same; part of an
// expression is missing.
func TestNaNOfNothingIsNoQuotient(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	const (
		idle  = `sum(rate(istio_requests_total{destination_workload="idle",reporter="destination"}[1m]))`
		there = `sum(rate(istio_requests_total{destination_workload="podinfo",reporter="destination"}[1m]))`
		gone  = `sum(rate(istio_requests_total{destination_workload="gone",reporter="destination"}[1m]))`
	)
	for expr, want := range map[string]string{
		"scalar(" + idle + ")":                   "0m",
		idle + " / scalar(" + idle + ")":         "0m",
		"scalar(" + gone + ")":                   "no sidecar",
		there + " / scalar(" + gone + ")":        `no series matches istio_requests_total{destination_workload="gone"`,
		there + " / " + gone:                     `no series matches istio_requests_total{destination_workload="gone"`,
		there + " + (" + gone + " or vector(0))": `36000m`,
		`scalar(rate(istio_requests_total{destination_workload="podinfo"}[1m]))`: "several series",
		there + " > 1000":       "series match",
		"scalar(" + there + ")": "36000m",
	} {
		if got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, expr, 10*time.Minute); !strings.Contains(got.String(), want) || strings.Contains(got.err, "0/0") {
			t.Errorf("%s is %s, want %s", expr, got, want)
		}
	}
}

// Who divides by a number of pods is told what to write, and that has a value.
func TestTheRemedyForDividingByPods(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	const (
		there = `sum(rate(istio_requests_total{destination_workload="podinfo",reporter="destination"}[1m]))`
		pods  = `count(count by (pod) (istio_requests_total{destination_workload="podinfo",reporter="destination"}))`
	)
	for _, by := range []string{`count(kube_pod_info{pod=~"podinfo.*"})`, `count(count(container_memory_usage_bytes{pod=~"podinfo.*"}) by (pod))`, `scalar(count(up{job="podinfo"}))`, `sum(kube_deployment_status_replicas)`} {
		got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, there+" / "+by, 10*time.Minute)
		for _, part := range []string{"AverageValue", "leave it out", "count(count by (pod) (istio_requests_total{…}))"} {
			if !strings.Contains(got.err, part) || !got.told(hpas.ReasonNotReported, part) {
				t.Errorf("%s does not say %q: %s", by, part, got)
			}
		}
	}
	if got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, there+" / "+pods, 10*time.Minute); got.err != "" || got.sum != 18000 {
		t.Errorf("the number of pods that is advised gives %s, want 18000m", got)
	}
	if got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, there+" / sum(rate(nginx_requests[1m]))", 10*time.Minute); strings.Contains(got.err, "AverageValue, which divides") {
		t.Errorf("a ratio is told of pods: %s", got)
	}
}

// A value that none of the pods meant reports, while they report others, is a mistake where it says
// something of themselves or of the mesh; of a code or a caller it is a request that has not come
// yet.
func TestAValueThatNobodyReports(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	rate := func(matchers string) string { return "sum(rate(istio_requests_total{" + matchers + "}[1m]))" }
	const (
		value = iota // there is one
		zero         // and an event
		quiet        // 0, and no event
		wrong        // an error that names what is reported
	)
	const podinfo, loadtester = `destination_workload="podinfo"`, `source_workload="loadtester"`
	for expr, want := range map[string]struct {
		is    int
		names string
	}{
		rate(podinfo + `,reporter="destination"`):                                                            {value, ""},
		rate(podinfo + `,reporter="destination",destination_service_name="podinf"`):                          {wrong, "destination_service_name podinfo"},
		rate(podinfo + `,reporter="destination",destination_service_namespace="unknown"`):                    {wrong, "destination_service_namespace test"},
		rate(podinfo + `,reporter="destination",destination_principal="spiffe://old/ns/test/sa/podinfo"`):    {wrong, "destination_principal spiffe://cluster.local/ns/test/sa/podinfo"},
		rate(podinfo + `,reporter="destination",destination_cluster=~"cluster-.+"`):                          {wrong, "destination_cluster Kubernetes"},
		rate(podinfo + `,reporter="destination",request_protocol="grpc"`):                                    {wrong, "request_protocol http"},
		rate(podinfo + `,reporter="destination",connection_security_policy="MUTUAL_TLS"`):                    {wrong, "connection_security_policy mutual_tls, none"},
		rate(podinfo + `,reporter="destination",response_code="2OO"`):                                        {zero, `response_code="2OO"`},
		rate(podinfo + `,reporter="destination",response_flags="UO"`):                                        {zero, `response_flags="UO"`},
		rate(podinfo + `,reporter="destination",grpc_response_status="14"`):                                  {zero, `grpc_response_status="14"`},
		rate(podinfo + `,reporter="destination",source_workload="web"`):                                      {zero, `source_workload="web"`},
		rate(podinfo + `,reporter="destination",source_principal="spiffe://old"`):                            {zero, `source_principal="spiffe://old"`},
		rate(podinfo + `,reporter="destination",source_workload="istio-ingressgateway",response_code="503"`): {quiet, ""}, // each is reported, not both
		rate(podinfo+`,reporter="destination",response_code="500"`) + " or vector(0)":                        {quiet, ""},
		// Beside what there is, a part that is said to count as nothing does; where it is all that
		// there is, it is the mistake.
		rate(podinfo+`,reporter="destination"`) + " + (" + rate(podinfo+`,reporter="destination",request_protocol="grpc"`) + " or vector(0))": {value, ""},
		rate(podinfo+`,reporter="destination",request_protocol="grpc"`) + " or " + rate(podinfo+`,reporter="destination"`):                    {value, ""},
		rate(podinfo+`,reporter="destination",destination_service_namespace="unknown"`) + " or vector(0)":                                     {wrong, "destination_service_namespace test"},
		"scalar(" + rate(podinfo+`,reporter="destination",request_protocol="grpc"`) + ")":                                                     {wrong, "request_protocol http"},

		rate(loadtester + `,reporter="source",source_app="load"`):                 {wrong, "no sidecar"}, // no pod says so of itself
		rate(loadtester + `,reporter="source",source_principal="spiffe://old"`):   {wrong, "source_principal spiffe://cluster.local/ns/test/sa/loadtester"},
		rate(loadtester + `,reporter="source",source_cluster="west"`):             {wrong, "source_cluster Kubernetes"},
		rate(loadtester + `,reporter="source",request_protocol="grpc"`):           {wrong, "request_protocol http"},
		rate(loadtester + `,reporter="source",destination_service_name="podinf"`): {zero, `destination_service_name="podinf"`},
		rate(loadtester + `,reporter="source",destination_workload="web"`):        {zero, `destination_workload="web"`},
		rate(loadtester + `,reporter="source",response_code="500"`):               {zero, `response_code="500"`},

		rate(podinfo + `,reporter="waypoint"`):                         {value, ""},
		rate(podinfo + `,reporter="waypoint",request_protocol="grpc"`): {wrong, "request_protocol http"},
		rate(podinfo + `,reporter="waypoint",response_code="500"`):     {zero, `response_code="500"`},
		rate(`destination_workload="api",reporter="waypoint"`):         {wrong, "no waypoint reports one"},

		rate(podinfo + `,destination_service_name="podinf"`):                    {wrong, "destination_service_name podinfo"},
		rate(podinfo + `,request_protocol="grpc"`):                              {wrong, "request_protocol http"},
		rate(podinfo + `,response_code="500"`):                                  {zero, `response_code="500"`},
		rate(podinfo + "," + loadtester + `,request_protocol="grpc"`):           {wrong, "request_protocol http"},
		rate(podinfo + "," + loadtester + `,destination_service_name="podinf"`): {zero, `destination_service_name="podinf"`},

		`sum(rate(istio_request_duration_milliseconds_bucket{` + podinfo + `,le="0.3"}[1m])) or vector(0)`:                                                                               {wrong, "le 0.5, 1, 5"},
		`(sum(rate(istio_request_duration_milliseconds_bucket{` + podinfo + `,le="0.3"}[1m])) or vector(0)) / sum(rate(istio_request_duration_milliseconds_count{` + podinfo + `}[1m]))`: {wrong, "le 0.5, 1, 5"},
		`sum(rate(istio_request_duration_milliseconds_bucket{` + podinfo + `,le="0.25"}[1m])) or sum(rate(istio_request_duration_milliseconds_bucket{` + podinfo + `,le="250"}[1m]))`:    {value, ""},
		`sum(rate(istio_request_duration_milliseconds_bucket{` + podinfo + `,le="300"}[1m])) / sum(rate(istio_request_duration_milliseconds_count{` + podinfo + `}[1m]))`:                {wrong, "le 0.5, 1, 5"},
		`sum(rate(istio_request_duration_milliseconds_bucket{` + podinfo + `,le="250"}[1m]))`:                                                                                            {value, ""},

		// Nothing has come to it, so the first request may be of any kind.
		rate(`destination_workload="idle",reporter="destination",request_protocol="grpc",destination_service_name="other"`): {quiet, ""},
		rate(`destination_workload="db",reporter="destination",request_protocol="grpc"`):                                    {quiet, ""},
	} {
		got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, expr, 10*time.Minute)
		told := got.told(hpas.ReasonUnreportedValue, want.names)
		ok := false
		switch want.is {
		case value:
			ok = got.err == "" && got.sum > 0 && !told
		case zero:
			ok = got.err == "" && got.sum == 0 && told
		case quiet:
			ok = got.err == "" && got.sum == 0 && !told
		case wrong:
			ok = strings.Contains(got.err, want.names)
		}
		if !ok {
			t.Errorf("%s is %s", expr, got)
		}
	}
}

// What the pods lack is told when they have something to tell: before, nobody knows.
func TestNothingIsToldBeforeThePodsReport(t *testing.T) {
	const (
		label  = `sum(rate(istio_requests_total{app="podinfo",namespace="test"}[1m]))`
		metric = `sum(rate(istio_requests{namespace="test"}[1m]))`
	)
	m := newCallMesh(t)
	later := m.calls
	ask := func(when, expr string, at time.Duration, want bool) {
		t.Helper()
		if got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, expr, at); got.err == "" || got.told(hpas.ReasonNotReported, "") != want {
			t.Errorf("%s, %s is %s", when, expr, got)
		}
	}
	ask("before a pod reports", label, time.Second, false)
	ask("before a pod reports", metric, time.Second, false)
	m.calls = map[string][]series{}
	m.run(5*time.Second, time.Minute)
	ask("before a request", label, time.Minute, false)
	ask("before a request", metric, time.Minute, true)
	m.calls = later
	m.run(65*time.Second, 2*time.Minute)
	ask("with requests", label, 2*time.Minute, true)
}

// The event must not change with what is reported, or it would be repeated; the error may.
func TestWhatIsToldOfAValueDoesNotChange(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, time.Minute)
	expr := `sum(rate(istio_requests_total{destination_workload="podinfo",reporter="destination",connection_security_policy="mtls"}[1m]))`
	before := m.ask(hpas.Vocabulary{}, expr, time.Minute)
	for i := range m.pods {
		m.calls[m.pods[i].Name] = nil
	}
	m.http("podinfo-7d9f8c6b5-00000", "destination", "frontend", "podinfo", "other", "200", 10)
	m.run(65*time.Second, 2*time.Minute)
	after := m.ask(hpas.Vocabulary{}, expr, 2*time.Minute)
	if before.err == after.err || len(before.events) != 1 || len(after.events) != 1 || before.events[0] != after.events[0] {
		t.Errorf("before %s, after %s", before, after)
	}
}

// What nobody reports leaves a doubt that names it, as far as the form of an expression tells.
func TestWhatAnExpressionAsksForThatIsNotIstios(t *testing.T) {
	for expr, foreign := range map[string]string{
		`sum(rate(istio_requests_total{reporter="destination"}[1m]))`:                                         "",
		`histogram_quantile(0.95,sum(rate(istio_request_bytes_bucket[5m]))by (le))`:                           "",
		`sum(idelta(istio_requests_total[1m]))`:                                                               "",
		`histogram_avg(sum(rate(istio_request_duration_milliseconds[1m])))`:                                   "",
		`histogram_avg(sum(rate(istio_request_duration_milliseconds[1m]))) * 0.001`:                           "",
		`histogram_avg(sum(rate(istio_request_duration_milliseconds[1m]))) / 60`:                              "",
		`sum(rate(istio_request_duration_milliseconds_sum[1m])) / sum(rate(istio_request_bytes_count[1m]))`:   "",
		`sum(rate(istio_request_duration_milliseconds_sum[1m])) / 1000`:                                       "",
		`0.001 * histogram_quantile(0.5, sum by (le) (rate(istio_request_duration_milliseconds_bucket[1m])))`: "",
		`sum(rate(istio_request_total[1m]))`:                                                                  "metric istio_request_total",
		`sum(rate(istio_requests_total{tenant="a"}[1m]))`:                                                     "label tenant",
		`sum(rate(istio_requests_total{tenant!="a"}[1m]))`:                                                    "",
		`sum(rate({__name__=~"istio_requests_total|x"}[1m]))`:                                                 "",
		`sum(rate({__name__=~"http_total|http_sum"}[1m]))`:                                                    "metric http_total|http_sum",
		`sum(`: "",
		`sum(rate(istio_request_duration_milliseconds_sum[1m]))/sum(rate(istio_request_duration_milliseconds_count[1m]))`:        "",
		`sum(rate(istio_request_duration_milliseconds_sum[1m]))/sum(rate(istio_request_duration_milliseconds_count[1m])) / 1000`: "",
		`histogram_quantile(0.95,sum(irate(istio_request_duration_milliseconds_bucket[5m]))by (le))`:                             "",
	} {
		p, a := newPrepared(expr, nil, nil), aggregator.Answer{}
		if p.Tree != nil {
			a.Absent = absentFrom(t, expr)
		}
		if got, _ := (rules{}).missing(p, a, p.absent(a)); (got == "") != (foreign == "") || !strings.Contains(got, foreign) {
			t.Errorf("%s: doubt is %q, want %q", expr, got, foreign)
		}
	}
}

// What is missing of an expression is the selector that leaves it without a value.
func TestWhichPartIsMissing(t *testing.T) {
	for expr, want := range map[string]string{
		`a`: "a", `sum(rate(a[1m]))`: "a", `-a`: "a", `(a)`: "a", `max_over_time(sum(a)[5m:1m])`: "a", `a offset 1m`: "a offset 1m", `sum(a @ 10)`: "a @ 10.000",
		`histogram_quantile(0.9, sum by (le) (rate(a[1m])))`: "a", `label_replace(a, "x", "$1", "y", "(.*)")`: "a",
		`b / a`: "a", `a / b`: "a", `a / 2`: "a", `2 > bool a`: "a", `a and b`: "a", `b and a`: "a", `a unless b`: "a", `b unless a`: "",
		`a or b`: "", `b or a`: "", `a or vector(0)`: "", `a or a`: "a", `b + (a or vector(0))`: "",
		`absent(a)`: "", `absent_over_time(a[1m])`: "", `scalar(a)`: "", `vector(scalar(a))`: "", `b * scalar(a)`: "", `hour()`: "", `vector(1)`: "", `count(a)`: "a",
	} {
		e := hpas.Parse(expr)
		absent := absentParts{}
		for _, p := range e.Parts {
			if p.Metric() == "a" {
				absent[p.VectorSelector] = aggregator.Absent{}
			}
		}
		got := ""
		if s := absent.in(e.Tree); s != nil {
			got = s.String()
		}
		if got != want {
			t.Errorf("%s: %q is missing, want %q", expr, got, want)
		}
	}
}

// Pods whose metrics are not read report, and nothing is known of them: that is no 0, whatever
// stands around the query.
func TestPodsOfAnotherForm(t *testing.T) {
	const rate = `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`
	send := func(s *aggregator.Store, pod string, to time.Duration) {
		st := s.Connect(aggregator.Pod{Namespace: "test", Name: pod, Workload: "podinfo", FlushInterval: 5 * time.Second})
		defer st.Close()
		for at := 5 * time.Second; at <= to; at += 5 * time.Second {
			arrival := s.Started().Add(at)
			if err := st.Commit(arrival, &aggregator.Batch{Timestamp: arrival.UnixMilli(), Refused: 4, OtherForm: true}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tc := range map[string]struct {
		expr    string
		read    bool // one of the two pods
		cluster bool
		at      time.Duration
		want    string // the answer, or part of the error
		held    bool
	}{
		"none is read":                            {rate, false, false, 2 * time.Minute, "in a form that is not read", false},
		"none is read, or 0":                      {rate + " or vector(0)", false, false, 2 * time.Minute, "in a form that is not read", false},
		"none is read, counted":                   {"scalar(count(" + rate + "))", false, false, 2 * time.Minute, "in a form that is not read", false},
		"one is read":                             {rate, true, false, 2 * time.Minute, "5", false},
		"none is read, in a cluster":              {rate + " or vector(0)", false, true, 2 * time.Minute, "20", true},
		"none is read, for long":                  {rate + " or vector(0)", false, true, 10 * time.Minute, "in a form that is not read", false},
		"one is read, in a cluster":               {rate, true, true, 2 * time.Minute, "20", true},
		"one is read, and the other not for long": {rate, true, true, 10 * time.Minute, "10", false}, // as the mean of those that are
	} {
		t.Run(name, func(t *testing.T) {
			store, err := aggregator.New(aggregator.Config{Retention: 15 * time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			send(store, "old-0", tc.at)
			if tc.read {
				requests{pod: "new-0", from: 5 * time.Second, to: tc.at}.send(store)
			} else {
				send(store, "old-1", tc.at)
			}
			r := rules{retention: 5 * time.Minute, started: store.Started()}
			if tc.cluster {
				var pods fixedPods
				for _, name := range []string{"old-0", "old-1", "new-0"} {
					if (name == "old-1") != tc.read && (name == "new-0") == tc.read || name == "old-0" {
						pods = append(pods, cluster.Pod{Wired: true, Identity: aggregator.Pod{Namespace: "test", Name: name, Workload: "podinfo"}, Created: store.Started().Add(-time.Hour)})
					}
				}
				r.holder = &holder{pods: pods, scales: fixedScale(2), store: store, started: store.Started(), hold: 5 * time.Minute}
			}
			p := register(store, preparedKey{namespace: "test", expr: tc.expr})
			a := asking("podinfo", autoscalingv2.AverageValueMetricType, "10", 2)
			o := &offer{offerKey: offerKey{"test", "rps", ""}, prepared: p, owner: a, askers: []*hpas.Wants{a}}
			v, _, refused := r.evaluate(t.Context(), "metric rps", o, p, store.Started().Add(tc.at))
			got := resource.NewMilliQuantity(v.sum(), resource.DecimalSI).String()
			if refused != nil {
				got = refused.message
			}
			if got != tc.want && (refused == nil || !strings.Contains(got, tc.want)) || v.held != tc.held {
				t.Errorf("got %s, held %t (%s)", got, v.held, v.reason)
			}
			if len(v.problems) == 0 || v.problems[len(v.problems)-1].Reason != hpas.ReasonUnreadMetrics {
				t.Errorf("no event: %v", v.problems)
			}
		})
	}
}

// A cluster's user sees the error in the HPA, and the event once, for a metric before anything has
// reported.
func TestServeWhatCanNeverBeThere(t *testing.T) {
	s := startServer(t, func(o *Options) { o.Keeps, o.CustomTags = istioOnly, []string{"tenant"} })
	const prefix = "metric-config.external.prometheus-query.prometheus/"
	s.write("a.yaml", fixture.HPA("podinfo", prefix+`pods: "sum(rate(istio_requests_total[1m])) / count(kube_pod_info)", `+prefix+`app: "sum(rate(istio_requests_total{app=\"podinfo\",namespace=\"test\"}[1m])) or vector(0)", `+
		prefix+`tenant: "sum(rate(istio_requests_total{tenant=\"a\",namespace=\"test\"}[1m])) or vector(0)"`,
		fixture.External("prometheus-query", "{matchLabels: {query-name: pods}}", `type: AverageValue, averageValue: "3"`)+", "+
			fixture.External("prometheus-query", "{matchLabels: {query-name: app}}", `type: AverageValue, averageValue: "3"`)+", "+
			fixture.External("prometheus-query", "{matchLabels: {query-name: tenant}}", `type: AverageValue, averageValue: "3"`)))
	eventually(t, func() bool { return s.log.count("reason=NotReported") == 1 }, func() string { return "no event before anything has reported" })
	s.sidecar("podinfo-1")
	for range 2 {
		for query, part := range map[string]string{"pods": "kube_pod_info", "app": "label app"} {
			if got := s.refused("test", "prometheus-query", "query-name="+query, http.StatusServiceUnavailable); !strings.Contains(got, part) {
				t.Errorf("%s: %s", query, got)
			}
		}
	}
	if got := s.value("test", "prometheus-query", "query-name=tenant"); got.Value.String() != "0" {
		t.Errorf("a tag that Telemetry resources add: %+v", got)
	}
	if got := s.log.count("reason=NotReported"); got != 2 {
		t.Errorf("%d events, want one about the metric and one about the label", got)
	}
	for i, part := range []string{"kube_pod_info", "label app", ""} {
		m := s.Status(t.Context()).Metrics[i]
		told := slices.ContainsFunc(m.Events, func(p hpas.Problem) bool {
			return p.Reason == hpas.ReasonNotReported && strings.Contains(p.Message, part)
		})
		if (m.Error != "") != (part != "") || !told {
			t.Errorf("the state of metric %d is %+v", i, m)
		}
	}
}
