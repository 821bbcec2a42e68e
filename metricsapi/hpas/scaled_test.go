package hpas

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"sigs.k8s.io/yaml"
)

const ourAddress = "meshpulse-keda.meshpulse-system:9091"

// scaledFrom reads a ScaledObject with lines of its spec and triggers, in YAML.
func scaledFrom(t *testing.T, spec string, triggers ...string) (HPA, bool) {
	t.Helper()
	text := "metadata: {name: a, namespace: test, uid: u, generation: 3, annotations: {meshpulse.io/serve: \"true\"}}\nspec:\n  scaleTargetRef: {name: a}\n" + spec + "  triggers:\n"
	for _, trigger := range triggers {
		text += "  - " + trigger + "\n"
	}
	object, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	h, ok, err := ReadScaledObject(object, func(address string) bool { return address == ourAddress })
	if err != nil {
		t.Fatal(err)
	}
	return h, ok
}

// trigger is one that asks an address, with more of its metadata.
func trigger(kind, address string, metadata map[string]string) string {
	metadata = maps.Clone(metadata)
	metadata["scalerAddress"] = address
	text, _ := json.Marshal(map[string]any{"type": kind, "metadata": metadata})
	return string(text)
}

var callers = of(TriggerMetric, "istio-requests-per-second", TriggerSelector, "reporter=source,destination_service_name=a,namespace=edge")

func TestAScaledObjectIsReadAsTheHPAThatKEDAMakesOfIt(t *testing.T) {
	h, ok := scaledFrom(t, "  maxReplicaCount: 7\n", trigger("cron", "", map[string]string{}), trigger("external-push", ourAddress, callers))
	if !ok || h.Name != "keda-hpa-a" || h.UID != "u" || h.Scaled.Generation != 3 || h.MinReplicas() != 1 || h.Spec.MaxReplicas != 7 || h.Spec.ScaleTargetRef.Kind != "Deployment" || !h.Scaled.ToZero || !h.Scaled.Others {
		t.Fatalf("%t, %+v, %+v", ok, h.HorizontalPodAutoscaler, h.Scaled)
	}
	read := Vocabulary{}.Read(h)
	if len(read.Metrics) != 1 || len(read.Problems) > 0 {
		t.Fatalf("%+v, problems %v", read.Metrics, read.Problems)
	}
	m := read.Metrics[0]
	if m.Name != "s1-istio-requests-per-second" || m.Selector.String() != "scaledobject.keda.sh/name=a" || !m.Triggered || m.Goal().String() != "10" || m.Surge.Window == 0 {
		t.Errorf("%+v", m)
	}
	if tr := h.Scaled.Triggers[0]; !tr.Push || tr.Place != 1 || !tr.Is(maps.Clone(callers)) || tr.Is(of()) {
		t.Errorf("%+v", tr)
	}
	for name, spec := range map[string]string{"another name": "  advanced: {horizontalPodAutoscalerConfig: {name: mine}}\n", "one replica at least": "  minReplicaCount: 1\n"} {
		if h, _ := scaledFrom(t, spec, trigger("external", ourAddress, callers)); (h.Name == "mine") == (h.Scaled.ToZero == false) {
			t.Errorf("%s: %s, to zero %t", name, h.Name, h.Scaled.ToZero)
		}
	}
}

func TestAScaledObjectThatAsksOthersIsNoHPAOfOurs(t *testing.T) {
	for _, text := range []string{trigger("external", "kafka.queues:9091", callers), trigger("prometheus", ourAddress, callers)} {
		if h, ok := scaledFrom(t, "", text); ok {
			t.Errorf("%s is read as %+v", text, h)
		}
	}
}

// KEDA writes its HPA some time after the ScaledObject: what its author says now is asked for, and
// what the controller goes by stays.
func TestKEDAsOwnHPACounts(t *testing.T) {
	made, _ := scaledFrom(t, "", trigger("external", ourAddress, callers), trigger("external", ourAddress, of(TriggerQuery, query)))
	theirs := made.DeepCopy()
	theirs.UID, theirs.Spec.MaxReplicas = "hpa", 42
	theirs.Spec.Metrics = theirs.Spec.Metrics[:1]
	h := made.As(theirs)
	if h.UID != "hpa" || h.Spec.MaxReplicas != 42 || len(h.Spec.Metrics) != 2 || len(theirs.Spec.Metrics) != 1 {
		t.Errorf("%+v beside %+v", h.Spec, theirs.Spec)
	}
	if read := (Vocabulary{}).Read(h); len(read.Metrics) != 2 || read.Metrics[1].Place != 1 {
		t.Errorf("%+v", read.Metrics)
	}
	whole := made.As(made.HorizontalPodAutoscaler)
	if whole.HorizontalPodAutoscaler != made.HorizontalPodAutoscaler {
		t.Error("an HPA that has all metrics is copied")
	}
	if !made.ReadsAs(made) || h.ReadsAs(made) {
		t.Error("two HPAs of one ScaledObject are not told apart")
	}
	edited := made
	edited.Scaled = &Scaled{UID: "u", Generation: 4}
	if edited.ReadsAs(made) {
		t.Error("an edited ScaledObject reads as before")
	}
}

func TestWhatIsWrongWithATriggerIsTold(t *testing.T) {
	byPods := of(TriggerMetric, "istio-requests-per-second", TriggerSelector, "destination_workload=a")
	callersOf := of(TriggerMetric, "istio-requests-per-second", TriggerSelector, "reporter=source,destination_workload=a,namespace=edge")
	anyCaller := of(TriggerMetric, "istio-requests-per-second", TriggerSelector, "reporter=source,destination_service_name=a")
	for name, test := range map[string]struct {
		spec   string
		second map[string]string // another trigger's metadata
		meta   map[string]string
		want   string // reason and text of the only problem
	}{
		"metadata that cannot be read":     {"", callers, of(TriggerQuery, "sum("), "BadTrigger trigger 0: metadata key query"},
		"pods count themselves":            {"", nil, byPods, "NeverWakes reporter=\"source\""},
		"callers of a workload":            {"", nil, callersOf, "NeverWakes destination_service_name"},
		"another trigger wakes it":         {"", callers, byPods, ""},
		"it keeps a pod":                   {"  minReplicaCount: 1\n", nil, byPods, ""},
		"idle, it has none":                {"  minReplicaCount: 2\n  idleReplicaCount: 0\n", nil, byPods, "NeverWakes minReplicaCount"},
		"whoever calls":                    {"", nil, anyCaller, "CallersWord add namespace, that of the callers"},
		"a label that nothing sets":        {"", callers, of(TriggerMetric, "istio-error-ratio", TriggerSelector, "team=a,reporter=source,namespace=edge"), "UnknownLabel team"},
		"surges of what has none":          {"", nil, of(TriggerMetric, "istio-request-duration-p95", TriggerSelector, "reporter=source,namespace=edge", TriggerSurgeAction, "scale"), "SurgeNotServed what the triggers say"},
		"a window of surges, and it is on": {"", callers, of(TriggerMetric, "istio-requests-per-second", TriggerSelector, "reporter=source,namespace=edge", TriggerSurgeWindow, "5s"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			triggers := []string{trigger("external", ourAddress, test.meta)}
			if test.second != nil {
				triggers = append(triggers, trigger("external", ourAddress, test.second))
			}
			h, _ := scaledFrom(t, test.spec, triggers...)
			var got []string
			for _, p := range (Vocabulary{}).Read(h).Problems {
				if p.Reason != ReasonLatencyAverage && p.Reason != ReasonRatioAverage {
					got = append(got, p.Reason+" "+p.Message)
				}
			}
			reason, text, _ := strings.Cut(test.want, " ")
			if test.want == "" && len(got) > 0 || test.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], reason) || !strings.Contains(got[0], text)) {
				t.Errorf("told %q, want %q", got, test.want)
			}
		})
	}
}

// Each trigger has surge settings of its own; what is done at a surge is the HPA's, the most
// careful of them.
func TestTriggersSurges(t *testing.T) {
	with := func(action, window string) string {
		return trigger("external", ourAddress, of(TriggerQuery, query, TriggerSurgeAction, action, TriggerSurgeWindow, window))
	}
	h, _ := scaledFrom(t, "", with("scale", "5s"), with("observe", "off"), with("", ""))
	read := Vocabulary{}.Read(h)
	if read.Surge.Action != SurgeObserve || !read.Surge.Acts() || len(read.Metrics) != 3 || read.Metrics[0].Surge.Window != 5*time.Second || read.Metrics[1].Surge.Window != 0 || read.Metrics[2].Surge.Window != 0 {
		t.Errorf("%+v, %+v", read.Surge, read.Metrics)
	}
	if h, _ := scaledFrom(t, "  advanced: {scalingModifiers: {formula: a}}\n", with("scale", "")); (Vocabulary{}).Read(h).Surge.Acts() {
		t.Error("the target of a formula is raised by one of its parts")
	} else if m := (Vocabulary{}).Read(h).Metrics[0]; m.Goal() != nil || m.Target.Type != autoscalingv2.AverageValueMetricType {
		t.Errorf("a part of a formula has the target %v", m.Target)
	}
}
