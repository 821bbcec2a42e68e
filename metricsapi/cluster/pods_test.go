package cluster

import (
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster/meshpod"
)

func TestPodsThatAreGoneAreRememberedForAnHour(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	x, err := NewPods(nil, func() time.Time { return now }) // its informer does not run
	if err != nil {
		t.Fatal(err)
	}
	pod := func(name string, change ...func(*corev1.Pod)) any {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: "test", Name: name, CreationTimestamp: metav1.NewTime(now.Add(-time.Hour)), Annotations: map[string]string{meshpod.StatusAnnotation: "{}"},
		}}
		for _, c := range change {
			c(p)
		}
		kept, err := x.keep(p)
		if err != nil {
			t.Fatal(err)
		}
		return kept
	}
	left := func(at time.Time, grace int64) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			end := metav1.NewTime(at.Add(time.Duration(grace) * time.Second))
			p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &end, &grace
		}
	}
	born := func(at time.Time) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(at) }
	}
	unwired := func(p *corev1.Pod) { p.Annotations = nil }
	for name, tc := range map[string]struct {
		object any
		left   time.Time // zero: it is not remembered
	}{
		"ends-in-order":  {pod("ends-in-order", left(now.Add(-20*time.Second), 30)), now.Add(-20 * time.Second)},
		"at-once":        {pod("at-once"), now},
		"used-again":     {lastOf(pod("used-again", born(now.Add(-2*time.Hour)), left(now.Add(-20*time.Second), 30)), pod("used-again", left(now.Add(-2*time.Second), 0))), now.Add(-2 * time.Second)},
		"ended-late":     {lastOf(pod("ended-late", left(now.Add(-20*time.Second), 30)), pod("ended-late", left(now.Add(-2*time.Second), 0))), now.Add(-20 * time.Second)},
		"not-seen-to-go": {cache.DeletedFinalStateUnknown{Key: "test/not-seen-to-go", Obj: pod("not-seen-to-go")}, now},
		"no-sidecar":     {pod("no-sidecar", unwired), time.Time{}},
	} {
		known := tc.object
		if unknown, ok := known.(cache.DeletedFinalStateUnknown); ok {
			known = unknown.Obj
		}
		x.add(known)
		x.forget(tc.object)
		got, ok := x.Get("test", name)
		if ok == tc.left.IsZero() || !got.Left.Equal(tc.left) {
			t.Errorf("%s: got %v, left %s, want %s", name, ok, got.Left, tc.left)
		}
	}
	if n, other := len(podsOf(x, aggregator.Meant{Namespace: "test"})), len(podsOf(x, aggregator.Meant{Namespace: "other"})); n != 5 || other != 0 {
		t.Errorf("got %d pods, and %d of another namespace, want 5 and 0", n, other)
	}
	if len(x.leaving) != 0 {
		t.Errorf("%v are remembered as leaving, and are gone", x.leaving)
	}
	now = now.Add(GoneFor + time.Second)
	x.add(pod("later"))
	x.forget(pod("later"))
	if got := podsOf(x); len(got) != 1 || got[0].Identity.Name != "later" {
		t.Errorf("after an hour: got %v, want only the last", got)
	}
	again := pod("later") // its name is used again
	if err := x.informer.GetStore().Add(again); err != nil {
		t.Fatal(err)
	}
	x.add(again)
	if p, ok := x.Get("test", "later"); !ok || !p.Left.IsZero() || len(podsOf(x)) != 2 {
		t.Errorf("of two pods of a name: got %v, want the one that exists, and both in the list", p)
	}
}

// podsOf returns the pods of the sets, all without any, with those that have left within the last
// hour.
func podsOf(x *Pods, sets ...aggregator.Meant) (all []Pod) {
	if sets == nil {
		sets = []aggregator.Meant{{}}
	}
	x.Each(sets, time.Time{}, func(p *Pod) { all = append(all, *p) })
	return all
}

// lastOf is the newest of what the API server has said of a pod.
func lastOf(versions ...any) any { return versions[len(versions)-1] }

// A pod that has changed has another version, whatever API servers number them by.
func TestAPodsVersionsAreToldApart(t *testing.T) {
	versions := map[string]bool{}
	for _, version := range []string{"", "0", "1", "8000001", "18446744073709551615", "18446744073709551616", "v1", "v2"} {
		kept, err := keepIdentity(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: version}})
		if err != nil {
			t.Fatal(err)
		}
		got := kept.(*cachedPod).GetObjectMeta().GetResourceVersion()
		if _, err := strconv.ParseUint(version, 10, 64); err == nil && got != version || versions[got] {
			t.Errorf("version %q is kept as %q", version, got)
		}
		versions[got] = true
	}
}
