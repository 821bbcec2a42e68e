package main

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// hostile is a text that a label's value may have.
const hostile = "podinfo\x1b[2J\u202e\nRemedy: none"

// seenAPI is an API server that leads to a meshpulse with one HPA, and says what it was asked.
func seenAPI(t *testing.T) (kubeconfig string, asked *[]string) {
	t.Helper()
	asked = new([]string)
	at := time.Unix(1_800_000_000, 0).UTC()
	value := 30.0
	e := explain.Explanation{
		TypeMeta: metav1.TypeMeta{APIVersion: explain.APIVersion, Kind: "Explanation"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "podinfo"}, At: at, Now: at,
		Target: "Deployment/podinfo", MaxReplicas: 5, Metrics: []explain.Metric{{
			Name: hostile, TargetType: "AverageValue", Target: "10", Value: "30", Rule: explain.RuleHeld, Expression: "up", Displayed: "10/10 (avg)",
			Pods:    []explain.Pod{{Namespace: "shop", Name: "podinfo-b", State: explain.StateSilent, LastFlush: &at}},
			History: []explain.Point{{At: at.Add(-time.Minute), Answered: &value, Wanted: 3, Replicas: 3}, {At: at, Answered: &value, Wanted: 3, Replicas: 3}},
		}},
	}
	e.Diagnose()
	answers := map[string]any{
		"GET /explanations":                         explain.List{TypeMeta: metav1.TypeMeta{APIVersion: explain.APIVersion, Kind: "ExplanationList"}, Items: []explain.Explanation{e}},
		"GET /namespaces/shop/explanations":         explain.List{Items: []explain.Explanation{e}},
		"GET /namespaces/shop/explanations/podinfo": e,
		"GET /namespaces/shop/pods":                 explain.Sidecars{At: at, Items: []explain.Sidecar{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "podinfo-b"}, State: explain.StateSilent, Refused: hostile}}},
		"POST /queries": explain.Query{Status: &explain.QueryStatus{Series: []explain.QuerySeries{{
			Labels: map[string]string{"path": hostile}, Points: []explain.QueryPoint{{At: at.Add(-time.Minute), Value: "1"}, {At: at, Value: "2"}},
		}}}},
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/apis/meshpulse.io/v1alpha1")
		*asked = append(*asked, key+"?"+r.URL.RawQuery)
		w.Header().Set("Content-Type", "application/json")
		answer, known := answers[key]
		code := http.StatusOK
		switch {
		case strings.Contains(key, "/forbidden/"):
			code, answer = http.StatusForbidden, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Code: 403, Reason: metav1.StatusReasonForbidden, Message: "forbidden: " + hostile}
		case !known:
			http.NotFound(w, r)
			return
		}
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(s.Close)
	kubeconfig = filepath.Join(t.TempDir(), "config")
	ca := filepath.Join(t.TempDir(), "ca.crt")
	for path, text := range map[string]string{
		ca: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})),
		kubeconfig: fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: elsewhere\ncontexts: [{name: elsewhere, context: {cluster: none, user: a}}, {name: shop, context: {cluster: a, user: a, namespace: shop}}]\n"+
			"users: [{name: a, user: {token: own}}]\nclusters: [{name: none, cluster: {server: 'https://127.0.0.1:1'}}, {name: a, cluster: {server: %q, certificate-authority: %q}}]\n", s.URL, ca),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return kubeconfig, asked
}

// TestSeenThroughTheAPIServerOfAKubeconfig: contexts, namespaces and output are kubectl's, the
// first lines say what is wrong, and nothing of others reaches a terminal as it is.
func TestSeenThroughTheAPIServerOfAKubeconfig(t *testing.T) {
	kubeconfig, asked := seenAPI(t)
	for name, test := range map[string]struct {
		args  string
		asked string
		code  int
		want  []string // in what is printed, in this order
	}{
		"top, in the context's namespace": {"top", "GET /namespaces/shop/explanations?", exitOK, []string{"HPA", "STATE", "podinfo", "held"}},
		"top, of all namespaces":          {"top -A", "GET /explanations?", exitOK, []string{"NAMESPACE", "shop", "podinfo"}},
		"top, for scripts":                {"top -A -o json", "GET /explanations?", exitOK, []string{`"kind": "Held"`, `"kind": "ExplanationList"`}},
		"top, a part of it":               {"top -A -o jsonpath={.items[0].troubles[0].kind}", "GET /explanations?", exitOK, []string{"Held"}},
		"explain":                         {"explain hpa/podinfo", "GET /namespaces/shop/explanations/podinfo?", exitOK, []string{"shop/podinfo: HELD", "\nCause: 1 sidecar silent (podinfo-b", "\nRemedy: kubectl -n shop logs podinfo-b"}},
		"explain, two words":              {"explain hpa podinfo", "GET /namespaces/shop/explanations/podinfo?", exitOK, []string{"HELD"}},
		"explain, an instant before":      {"explain podinfo --at -2m", "GET /namespaces/shop/explanations/podinfo?at=-2m", exitOK, []string{"HELD"}},
		"explain, drawn":                  {"explain podinfo --plot", "GET /namespaces/shop/explanations/podinfo?", exitOK, []string{"value: · seen, * answered", "*", "replicas: ^ wanted, = there", "^"}},
		"explain, as YAML":                {"explain podinfo -o yaml", "GET /namespaces/shop/explanations/podinfo?", exitOK, []string{"rule: held"}},
		"explain, nothing":                {"explain", "", exitUsage, []string{"name one HPA"}},
		"explain, another kind":           {"explain deployment/podinfo", "", exitUsage, []string{"is no HPA"}},
		"pods":                            {"pods", "GET /namespaces/shop/pods?", exitOK, []string{"POD", "podinfo-b", "silent"}},
		"query":                           {"query up", "POST /queries?", exitOK, []string{"SERIES", "path=", "2"}},
		"query, drawn":                    {"query up --range 1m --step 30s --plot", "POST /queries?", exitOK, []string{"path=", "a"}},
		"query, nothing":                  {"query", "", exitUsage, []string{"give one PromQL expression"}},
		"query, too fine":                 {"query up --range 24h --step 1s", "", exitUsage, []string{"more than 1000 instants"}},
		"another output":                  {"top -o xml", "GET /namespaces/shop/explanations?", exitUsage, []string{"--output"}},
		"the group is not there":          {"pods -A", "GET /pods?", exitFailed, []string{"manifests/components/own-api"}},
		"forbidden":                       {"pods -n forbidden", "GET /namespaces/forbidden/pods?", exitFailed, []string{"meshpulse:reader"}},
	} {
		*asked = nil
		code, stdout, stderr := call(t.Context(), append(strings.Fields(test.args), "--kubeconfig", kubeconfig, "--context", "shop")...)
		if code != test.code || strings.Join(*asked, " ") != test.asked {
			t.Errorf("%s: code %d, asked %q, stderr %q", name, code, *asked, stderr)
		}
		rest := stdout + stderr
		if strings.ContainsAny(rest, "\x1b\u202e") || strings.Contains(rest, "\nRemedy: none") {
			t.Errorf("%s: prints what a terminal obeys: %q", name, rest)
		}
		for _, want := range test.want {
			_, after, found := strings.Cut(rest, want)
			if !found {
				t.Errorf("%s: no %q in\n%s", name, want, stdout+stderr)
				break
			}
			rest = after
		}
	}
	if code, _, stderr := call(t.Context(), "top", "--kubeconfig", kubeconfig, "--context", "none-of-these"); code != exitFailed || !strings.Contains(stderr, "none-of-these") {
		t.Errorf("a context that is not there: code %d, %q", code, stderr)
	}
}

// TestJSONOfOthersTextMeansTheSame: what is escaped for the terminal is read again as it was.
func TestJSONOfOthersTextMeansTheSame(t *testing.T) {
	kubeconfig, _ := seenAPI(t)
	code, stdout, stderr := call(t.Context(), "explain", "podinfo", "-o", "json", "--kubeconfig", kubeconfig, "--context", "shop")
	var e explain.Explanation
	if err := json.Unmarshal([]byte(stdout), &e); code != exitOK || err != nil || e.Metrics[0].Name != hostile {
		t.Errorf("code %d, error %v, %q, %s", code, err, stdout, stderr)
	}
}
