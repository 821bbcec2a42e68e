package hpas

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"sigs.k8s.io/yaml"

	"github.com/meshpulse/meshpulse/aggregator"
)

const minimal = "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: %}\nspec: {maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: %}}\n"

func minimalHPA(name string) string { return strings.ReplaceAll(minimal, "%", name) }

func TestReadHPAFile(t *testing.T) {
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n"
	tests := map[string]struct {
		path, text string
		want       []string // namespace/name
		ignored    []string
		problems   []string // of the first HPA
		err        string
	}{
		"nothing":                      {text: ""},
		"comments only":                {text: "# nothing\n---\n# here\n"},
		"one HPA, without a namespace": {text: minimalHPA("a"), want: []string{"default/a"}},
		"several documents": {
			text: "---\n" + minimalHPA("a") + "--- # the next\n" + minimalHPA("b") + "---\n\n---\n" + service,
			want: []string{"default/a", "default/b"}, ignored: []string{"v1 Service"},
		},
		"Windows line ends": {text: strings.ReplaceAll(minimalHPA("a")+"---\n"+minimalHPA("b"), "\n", "\r\n"), want: []string{"default/a", "default/b"}},
		"dashes within a value": {
			text: "apiVersion: v1\nkind: ConfigMap\ndata:\n  x: |\n    ---\n    kind: HorizontalPodAutoscaler\n", ignored: []string{"v1 ConfigMap"},
		},
		"a List as kubectl prints it": {
			text: "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(strings.TrimSpace(minimalHPA("a")), "\n", "\n  ") + "\n- " + strings.ReplaceAll(strings.TrimSpace(service), "\n", "\n  ") + "\n",
			want: []string{"default/a"}, ignored: []string{"v1 Service"},
		},
		"JSON": {
			path: "a.json", want: []string{"test/a", "default/b"},
			text: `{"apiVersion":"autoscaling/v2","kind":"HorizontalPodAutoscaler","metadata":{"name":"a","namespace":"test"},"spec":{"maxReplicas":1,"scaleTargetRef":{"kind":"Deployment","name":"a"}}}` +
				"\n" + `{"apiVersion":"autoscaling/v2","kind":"HorizontalPodAutoscaler","metadata":{"name":"b"},"spec":{"maxReplicas":1,"scaleTargetRef":{"kind":"Deployment","name":"b"}}}`,
		},
		"v2beta2": {
			text: strings.Replace(minimalHPA("a"), "autoscaling/v2", "autoscaling/v2beta2", 1), want: []string{"default/a"},
			problems: []string{"OldVersion Write apiVersion: autoscaling/v2, the rest stays"},
		},
		"a field that there is not": {
			text: strings.Replace(minimalHPA("a"), "spec: {", "spec: {minReplica: 2, ", 1), want: []string{"default/a"},
			problems: []string{`UnknownField minReplica`},
		},

		"a field in other case, as an API server reads it": {
			text: strings.Replace(minimalHPA("a"), "spec: {", "spec: {minreplicas: 2, ", 1), want: []string{"default/a"},
			problems: []string{`UnknownField minreplicas`},
		},

		"not YAML":                   {text: minimalHPA("a") + "---\n" + minimalHPA("b") + "  bad: [\n", want: []string{"default/a"}, err: "line 9: "}, // the library names the line before
		"not YAML in the first line": {text: "}", err: "line 1: "},
		"a key twice":                {text: minimalHPA("a") + "kind: Other\n", err: "line 5: "},
		"text":                       {text: "---\nhello\n", err: "line 1: not a Kubernetes object"},
		"not JSON":                   {path: "a.json", text: "{\"kind\": \"A\"}\n{\n\"b\": nope}\n", ignored: []string{"A"}, err: "line 3: not JSON"},
		"half a JSON":                {path: "a.json", text: "{\n\"kind\":", err: "line 1: not JSON"},
		"no name":                    {text: minimalHPA(`""`), err: "line 1: a HorizontalPodAutoscaler without metadata.name"},
		"no maximum":                 {text: "# x\n---\n" + strings.Replace(minimalHPA("a"), "maxReplicas: 3, ", "", 1), err: "line 2: HorizontalPodAutoscaler a: spec.maxReplicas is 0"},
		"the maximum misspelt": {
			text: strings.Replace(minimalHPA("a"), "maxReplicas", "maxReplica", 1),
			err:  `HorizontalPodAutoscaler a: spec.maxReplicas is 0, it must be 1 or more; a field is not known and has no effect: unknown field "spec.maxReplica"`,
		},
		"a minimum above the maximum": {
			text: strings.Replace(minimalHPA("a"), "spec: {", "spec: {minReplicas: 20, ", 1),
			err:  "HorizontalPodAutoscaler a: spec.minReplicas is 20, it must not be above spec.maxReplicas, which is 3: lower the one or raise the other",
		},
		"a negative minimum": {
			text: strings.Replace(minimalHPA("a"), "spec: {", "spec: {minReplicas: -1, ", 1), err: "spec.minReplicas is -1, it must be 0 or more",
		},
		"nothing to scale": {
			text: strings.Replace(minimalHPA("a"), ", scaleTargetRef: {kind: Deployment, name: a}", "", 1), err: "HorizontalPodAutoscaler a: spec.scaleTargetRef lacks kind or name: name what is scaled",
		},
		"a target that is no quantity": {
			text: strings.Replace(minimalHPA("a"), "spec: {", `spec: {metrics: [{type: External, external: {metric: {name: x}, target: {type: AverageValue, averageValue: "ten"}}}], `, 1),
			err:  `line 1: not a HorizontalPodAutoscaler: spec.metrics[0].external.target.averageValue: "ten" is not a quantity: write a number such as "10"`,
		},
		"a target of v2beta1 that is no quantity": {
			text: strings.NewReplacer("autoscaling/v2", "autoscaling/v2beta1", "spec: {", `spec: {metrics: [{type: External, external: {metricName: x, targetValue: "a lot"}}], `).Replace(minimalHPA("a")),
			err:  `spec.metrics[0].external.targetValue: "a lot" is not a quantity`,
		},
		"a wrong type":   {text: strings.Replace(minimalHPA("a"), "maxReplicas: 3", "maxReplicas: many", 1), err: "line 1: not a HorizontalPodAutoscaler"},
		"autoscaling/v1": {text: strings.Replace(minimalHPA("a"), "autoscaling/v2", "autoscaling/v1", 1), want: []string{"default/a"}},
		"a version that there is not": {
			text: minimalHPA("a") + "---\n" + strings.Replace(minimalHPA("b"), "autoscaling/v2", "autoscaling/v3", 1) + "---\n" + minimalHPA("c"),
			want: []string{"default/a", "default/c"}, err: `line 5: a HorizontalPodAutoscaler of version "autoscaling/v3": write autoscaling/v2`,
		},
		"annotations that YAML reads as something else": {
			text: minimalHPA("a") + "---\n" + strings.Replace(minimalHPA("b"), "{name: b}",
				"{name: b, annotations: {meshpulse.io/surge-window: off, meshpulse.io/surge-ratio: 1.5, x: [1], y: , z: text}}", 1),
			want: []string{"default/a"},
			err: "line 5: HorizontalPodAutoscaler b: " +
				`annotation meshpulse.io/surge-ratio is not text but a number: quote its value, as in "1.5"` + "\n" +
				`annotation meshpulse.io/surge-window is not text, YAML reads it as false: quote its value, as in "on" or "off"` + "\n" +
				"annotation x is not text but a map or a list: quote its value",
		},
		"an annotation without a value": {
			text: strings.Replace(minimalHPA("a"), "{name: a}", "{name: a, annotations: {y: }}", 1), want: []string{"default/a"},
		},
		"one bad document of a List": {
			text: "apiVersion: v1\nkind: List\nitems:\n- hello\n- " + strings.ReplaceAll(strings.TrimSpace(minimalHPA("a")), "\n", "\n  ") + "\n",
			want: []string{"default/a"}, err: "line 1: not a Kubernetes object",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			path := tc.path
			if path == "" {
				path = "a.yaml"
			}
			c := Decode(path, []byte(tc.text))
			hpas, ignored := c.HPAs, c.Ignored
			switch wanted := tc.err != ""; {
			case len(c.Refused) > 1, wanted != (len(c.Refused) == 1):
				t.Fatalf("refused %v, want one with %q", c.Refused, tc.err)
			case wanted && !strings.Contains(c.Refused[0].Error(), tc.err):
				t.Errorf("refused: %v, want %q", c.Refused[0], tc.err)
			}
			var names []string
			for i, h := range hpas {
				names = append(names, h.Key().String())
				if h.Path != path || h.Place != i || h.APIVersion != "autoscaling/v2" {
					t.Errorf("HPA %d is %s of document %d, version %s", i, h.Path, h.Place, h.APIVersion)
				}
			}
			if d := cmp.Diff(tc.want, names); d != "" {
				t.Errorf("HPAs (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tc.ignored, ignored); d != "" {
				t.Errorf("ignored (-want +got):\n%s", d)
			}
			if len(hpas) > 0 {
				wantProblems(t, hpas[0].Problems, tc.problems)
			}
		})
	}
}

// The converted HPA, read from the text that the event shows, is the HPA that is served.
func TestReadV2beta1(t *testing.T) {
	const old = `
apiVersion: autoscaling/v2beta1
kind: HorizontalPodAutoscaler
metadata: {name: a, namespace: test}
spec:
  minReplicas: 2
  maxReplicas: 7
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: a}
  metrics:
  - {type: External, external: {metricName: prometheus-query, metricSelector: {matchLabels: {query-name: rps}}, targetAverageValue: "10"}}
  - {type: External, external: {metricName: istio-error-ratio, targetValue: 50m}}
  - {type: Resource, resource: {name: cpu, targetAverageUtilization: 80}}
  - {type: Resource, resource: {name: memory, targetAverageValue: 1Gi}}
  - {type: ContainerResource, containerResource: {name: cpu, container: app, targetAverageUtilization: 80}}
  - {type: Pods, pods: {metricName: rps, targetAverageValue: "5"}}
  - {type: Object, object: {target: {kind: Ingress, name: x}, metricName: rps, targetValue: "5"}}
`
	const v2 = `
- {type: External, external: {metric: {name: prometheus-query, selector: {matchLabels: {query-name: rps}}}, target: {type: AverageValue, averageValue: "10"}}}
- {type: External, external: {metric: {name: istio-error-ratio}, target: {type: Value, value: 50m}}}
- {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}
- {type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 1Gi}}}
- {type: ContainerResource, containerResource: {name: cpu, container: app, target: {type: Utilization, averageUtilization: 80}}}
- {type: Pods, pods: {metric: {name: rps}, target: {type: AverageValue, averageValue: "5"}}}
- {type: Object, object: {describedObject: {kind: Ingress, name: x}, metric: {name: rps}, target: {type: Value, value: "5"}}}
`
	h := hpaFrom(t, old)
	if *h.Spec.MinReplicas != 2 || h.Spec.MaxReplicas != 7 || h.Spec.ScaleTargetRef.Name != "a" || h.Namespace != "test" {
		t.Errorf("converted to %+v", h.Spec)
	}
	wantProblems(t, h.Problems, []string{"OldVersion as spec.metrics:"})
	_, shown, _ := strings.Cut(h.Problems[0].Message, "spec.metrics:\n")
	for what, text := range map[string]string{"served": toYAML(t, h.Spec.Metrics), "shown": shown} {
		var got, want any
		mustYAML(t, text, &got)
		mustYAML(t, v2, &want)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}

	c := Decode("a.yaml", []byte(strings.Replace(old, "external: {metricName", "extern: {metricName", 1)))
	if len(c.Refused) != 1 || !strings.Contains(c.Refused[0].Error(), `spec.metrics[0] of type "External" lacks the part`) {
		t.Errorf("a metric without its part: %v", c.Refused)
	}
}

// An HPA as kubectl up to 1.22 prints it: autoscaling/v1, with its other metrics in an annotation.
func TestReadV1(t *testing.T) {
	h := hpaFrom(t, `
apiVersion: autoscaling/v1
kind: HorizontalPodAutoscaler
metadata:
  name: a
  namespace: test
  annotations:
    metric-config.external.prometheus-query.prometheus/rps: vector(1)
    autoscaling.alpha.kubernetes.io/metrics: '[{"type":"External","external":{"metricName":"prometheus-query","metricSelector":{"matchLabels":{"query-name":"rps"}},"targetAverageValue":"10"}}]'
spec: {maxReplicas: 7, minReplicas: 2, targetCPUUtilizationPercentage: 80, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: a}}
`)
	want := autoscalingv2.HorizontalPodAutoscalerSpec{}
	mustYAML(t, `
minReplicas: 2
maxReplicas: 7
scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: a}
metrics:
- {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}
- {type: External, external: {metric: {name: prometheus-query, selector: {matchLabels: {query-name: rps}}}, target: {type: AverageValue, averageValue: "10"}}}
`, &want)
	if d := cmp.Diff(toYAML(t, want), toYAML(t, h.Spec)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	wantProblems(t, Vocabulary{}.Read(h).Problems, nil)
}

// TestExamplesAreReadAsWritten: what an example says has the effect that it promises. What the
// guides could do better is advice.
func TestExamplesAreReadAsWritten(t *testing.T) {
	files, err := filepath.Glob("../../manifests/examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	advice := []string{ReasonLatencyAverage, ReasonLatencyStability, ReasonMilliseconds, ReasonNoisyRate, ReasonCallersWord}
	surge := false
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		a := Vocabulary{}.Read(hpaFrom(t, string(data)))
		for _, p := range a.Problems {
			if !slices.Contains(advice, p.Reason) {
				t.Errorf("%s: %s: %s", file, p.Reason, p.Message)
			}
		}
		if filepath.Base(file) == "requests-surge.yaml" {
			want := aggregator.SurgeConfig{Window: 10 * time.Second, Ratio: 1.5}
			surge = len(a.Metrics) == 1 && a.Metrics[0].Surge == want && a.Surge.Action == SurgeObserve
		}
	}
	if !surge {
		t.Error("requests-surge.yaml does not ask for surges of 10s and 1.5, and to observe")
	}
}

func toYAML(t *testing.T, v any) string {
	t.Helper()
	text, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func mustYAML(t *testing.T, text string, v any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), v); err != nil {
		t.Fatal(err)
	}
}

func FuzzReadHPAFile(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, false)
	}
	f.Add([]byte(minimalHPA("a")+"---\n"+minimalHPA("b")), false)
	f.Add([]byte(strings.Replace(minimalHPA("a"), "autoscaling/v2", "autoscaling/v2beta1", 1)), false)
	f.Add([]byte(`{"kind":"List","items":[{"kind":"List","items":[null,1]}]}`), true)
	f.Add([]byte("--- {\n...\n--- *a"), false)
	f.Fuzz(func(t *testing.T, data []byte, asJSON bool) {
		path := "a.yaml"
		if asJSON {
			path = "a.json"
		}
		c := Decode(path, data)
		for _, bad := range c.Refused {
			if lines := 1 + strings.Count(string(data), "\n"); bad.Line < 1 || bad.Line > lines {
				t.Errorf("the error names no line of %d: %v", lines, bad)
			}
		}
		for _, h := range c.HPAs {
			if h.Name == "" || h.Namespace == "" || h.Spec.MaxReplicas < 1 {
				t.Errorf("HPA %q/%q with up to %d replicas", h.Namespace, h.Name, h.Spec.MaxReplicas)
			}
			Vocabulary{}.Read(h)
		}
	})
}
