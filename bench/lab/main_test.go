package main

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/meshpulse/meshpulse/bench/process"
)

func TestMeterKeepsWhatEndedProcessesHaveUsed(t *testing.T) {
	const s = time.Second
	m := &meter{
		part:   map[int]string{1: "sidecars", 2: "sidecars", 3: "meshpulse"},
		before: map[int]process.Usage{1: {CPU: 2 * s}, 3: {CPU: s}},
		// 1 and 3 ran before the first reading, 2 started after it and has ended.
		last: map[int]process.Usage{1: {CPU: 5 * s, Peak: 40}, 2: {CPU: 4 * s, Peak: 30}, 3: {CPU: 3 * s / 2, Peak: 90}},
	}
	want := map[string]cost{"sidecars": {cpu: 7, rss: 70}, "meshpulse": {cpu: 0.5, rss: 90}}
	if diff := cmp.Diff(want, m.costs(), cmp.AllowUnexported(cost{})); diff != "" {
		t.Error(diff)
	}
}

func TestOutcomeIsPerMinuteOfLoadAndPathLeavesTheEnvoysOut(t *testing.T) {
	o := outcome{boot: 3500 * time.Millisecond, seconds: 120, bytes: 120 * 1024, costs: map[string]cost{
		"sidecars": {cpu: 20, rss: 1 << 20}, "prometheus": {cpu: 2, rss: 3 << 20}, "keda-adapter": {cpu: 4, rss: 5 << 20},
	}}
	got := map[string]float64{}
	for _, m := range o.figures() {
		if !math.IsNaN(m.Value) {
			got[m.Name] = m.Value
		}
	}
	for name, want := range map[string]float64{
		"CPU of sidecars": 10, "control plane booted": 3.5, "CPU of the path without the Envoys": 3, "peak RSS of the path without the Envoys": 8, "bytes from the Envoys": 1,
	} {
		if got[name] != want {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
}

func TestReportsTellNoPathAboveTheProject(t *testing.T) {
	l := &lab{root: "/srv/somebody/meshpulse"}
	for text, want := range map[string]string{
		"open /srv/somebody/meshpulse/.cache/lab/runs/x/pods/a.log: no such file": "open .cache/lab/runs/x/pods/a.log: no such file",
		"in /srv/somebody/meshpulse, twice /srv/somebody/meshpulse/bin":           "in ., twice bin",
		"2 of 3 pods": "2 of 3 pods",
	} {
		if got := l.withoutRoot(text); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

const rendered = `
- {kind: Service, metadata: {name: meshpulse}, spec: {ports: [{port: 443}]}}
- {kind: Service, metadata: {name: meshpulse-ingest}, spec: {ports: [{port: 15090}]}}
- {kind: APIService, metadata: {name: v1beta1.external.metrics.k8s.io}, spec: {group: external.metrics.k8s.io}}
- {kind: Deployment, metadata: {name: meshpulse}, spec: {replicas: 1, template: {spec: {containers: [{name: meshpulse, args: [serve, --x=1]}]}}}}
`

func TestAdaptChangesWhatDiffersOutsideAPodOnly(t *testing.T) {
	var documents []map[string]any
	if err := yaml.Unmarshal([]byte(rendered), &documents); err != nil {
		t.Fatal(err)
	}
	var objects []*unstructured.Unstructured
	for _, d := range documents {
		objects = append(objects, &unstructured.Unstructured{Object: d})
	}
	flags, err := adapt(objects, []byte("ca"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"serve", "--x=1"}, flags); diff != "" {
		t.Error(diff)
	}
	for i, want := range []map[string]any{
		{"ports": []any{map[string]any{"port": 443.0}}, "type": "NodePort", "clusterIP": serviceIP},
		{"ports": []any{map[string]any{"port": 15090.0}}},
		{"group": "external.metrics.k8s.io", "caBundle": "Y2E="},
	} {
		if diff := cmp.Diff(want, objects[i].Object["spec"]); diff != "" {
			t.Errorf("%s: %s", objects[i].GetName(), diff)
		}
	}
	if replicas, _, _ := unstructured.NestedInt64(objects[3].Object, "spec", "replicas"); replicas != 0 {
		t.Errorf("the Deployment would start %d pods beside the process", replicas)
	}
	if _, err := adapt(objects[:2], nil); err == nil {
		t.Error("manifests without an APIService are no installation")
	}
}
