package hpas

import (
	"slices"
	"strings"
	"testing"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestServed(t *testing.T) {
	cases := map[string]struct {
		hpa, namespace string
		optIn          bool
		want           bool
	}{
		"nobody says":                            {want: true},
		"nobody says, opt-in":                    {optIn: true},
		"the HPA says no":                        {hpa: "false"},
		"the HPA says yes, opt-in":               {hpa: "true", optIn: true, want: true},
		"its namespace says no":                  {namespace: "false"},
		"its namespace says yes, opt-in":         {namespace: "true", optIn: true, want: true},
		"the HPA says yes, its namespace no":     {hpa: "true", namespace: "false", want: true},
		"the HPA says no, its namespace yes":     {hpa: "false", namespace: "true"},
		"the HPA's cannot be read, namespace no": {hpa: "nein", namespace: "false"},
		"neither can be read":                    {hpa: "False", namespace: "0", want: true},
		"neither can be read, opt-in":            {hpa: "yes", namespace: "1", optIn: true},
	}
	for name, c := range cases {
		h := HPA{HorizontalPodAutoscaler: &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}}
		if c.hpa != "" {
			h.Annotations = map[string]string{Serve: c.hpa}
		}
		s := Serving{OptIn: c.optIn, Namespace: func(of string) string {
			if of != "shop" {
				t.Errorf("%s: asked for namespace %q", name, of)
			}
			return c.namespace
		}}
		if got := s.Serves(h); got != c.want {
			t.Errorf("%s: served %t, want %t", name, got, c.want)
		}
	}
	if h := (HPA{HorizontalPodAutoscaler: &autoscalingv2.HorizontalPodAutoscaler{}}); !(Serving{}).Serves(h) {
		t.Error("without settings an HPA is not served")
	}
}

// byPrefix keeps what begins with one of the prefixes.
func byPrefix(prefixes ...string) Vocabulary {
	return Vocabulary{Keeps: func(metric string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(metric, p) })
	}}
}

func TestOurs(t *testing.T) {
	istio := byPrefix("istio_")
	cases := map[string]struct {
		expr  string
		words Vocabulary
		want  bool
	}{
		"a metric of Istio's":           {`sum(rate(istio_requests_total{destination_workload="web"}[1m]))`, istio, true},
		"a histogram's parts":           {`histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds_bucket[1m])) by (le))`, istio, true},
		"two of Istio's":                {`sum(rate(istio_requests_total[1m])) / sum(rate(istio_response_bytes_count[1m]))`, istio, true},
		"what no sidecar sends, kept":   {`sum(istio_build)`, istio, true},
		"somebody else's":               {`sum(rate(http_requests_total[1m]))`, istio, false},
		"one of both":                   {`sum(rate(istio_requests_total[1m])) / count(kube_pod_info)`, istio, false},
		"somebody else's behind or":     {`sum(rate(istio_requests_total[1m])) or sum(rate(http_requests_total[1m]))`, istio, false},
		"somebody else's, kept":         {`sum(rate(http_requests_total[1m]))`, byPrefix("istio_", "http_requests"), true},
		"a histogram kept by its base":  {`sum(rate(envoy_upstream_ms_count[1m]))`, Vocabulary{Keeps: func(m string) bool { return m == "envoy_upstream_ms" }}, true},
		"all is kept":                   {`sum(rate(http_requests_total[1m]))`, Vocabulary{}, true},
		"a list of Istio's":             {`sum(rate({__name__=~"istio_requests_total|istio_request_messages_total"}[1m]))`, istio, true},
		"a list with somebody else's":   {`sum(rate({__name__=~"istio_requests_total|http_requests_total"}[1m]))`, istio, false},
		"a pattern, which names none":   {`sum(rate({__name__=~"istio_.*"}[1m]))`, istio, false},
		"no name at all":                {`sum({destination_workload="web"})`, istio, false},
		"a pattern, though all is kept": {`sum(rate({__name__=~"istio_.*"}[1m]))`, Vocabulary{}, false},
		"a number":                      {`vector(3)`, istio, true},
		"no PromQL":                     {`sum(`, istio, false},
		"none":                          {``, istio, false},
		"another dialect":               {`sum(rate(istio_requests_total[1m])) keep_metric_names`, istio, false},
	}
	for name, c := range cases {
		if got := (Metric{Expr: c.expr}).Ours(c.words); got != c.want {
			t.Errorf("%s: %s is ours: %t, want %t", name, c.expr, got, c.want)
		}
	}
}

func TestWhatIsOfTheMesh(t *testing.T) {
	const istios, asked, all = "istio_", "istio_ and http_requests", "all"
	kept := map[string]Vocabulary{istios: byPrefix("istio_"), asked: byPrefix("istio_", "http_requests"), all: {}}
	for expr, of := range map[string][]string{
		`sum(rate(istio_requests_total[1m]))`:                                              {istios, asked, all},
		`histogram_quantile(0.9, sum(istio_request_duration_milliseconds_bucket) by (le))`: {istios, asked, all},
		`sum(http_requests_total)`:                                                         {asked},
		`sum(istio_build)`:                                                                 nil,
		`sum(kube_secret_info)`:                                                            nil,
		`sum({__name__=~"istio_requests_total|kube_pod"})`:                                 nil,
		`sum({__name__=~"istio_.*"})`:                                                      nil,
		`sum(istio_requests_total) or sum(kube_secret_info)`:                               nil,
		`sum(`: nil,
	} {
		for name, words := range kept {
			if got := Parse(expr).OfMesh(words); got != slices.Contains(of, name) {
				t.Errorf("%s, kept is %s: %t", expr, name, got)
			}
		}
	}
}
