package cluster

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster/meshpod"
)

// addressed is an index whose informer is played by hand.
type addressed struct {
	*testing.T
	*Pods
	now time.Time
}

func newAddressed(t *testing.T) *addressed {
	a := &addressed{T: t, now: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}
	var err error
	if a.Pods, err = NewPods(nil, func() time.Time { return a.now }); err != nil {
		t.Fatal(err)
	}
	return a
}

// pod is one as the API server tells it, with an age and the addresses.
func (a *addressed) pod(name string, age time.Duration, addresses ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: name, CreationTimestamp: metav1.NewTime(a.now.Add(-age))}}
	for _, address := range addresses {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: address})
	}
	return p
}

// tell does what the informer does with news of a pod.
func (a *addressed) tell(p *corev1.Pod) {
	kept, err := a.Transform(p)
	if err != nil {
		a.Fatal(err)
	}
	store := a.informer.GetStore()
	was, exists, _ := store.Get(kept)
	if err := store.Update(kept); err != nil {
		a.Fatal(err)
	}
	if exists {
		a.replace(was, kept)
	} else {
		a.add(kept)
	}
}

// goes is a pod's end.
func (a *addressed) goes(name string) {
	was, _, _ := a.informer.GetStore().GetByKey("test/" + name)
	_ = a.informer.GetStore().Delete(was)
	a.forget(was)
}

// whose is whose an address is to who says that he is a pod.
func (a *addressed) whose(says, address string) string {
	own, other := a.Holder("test", says, netip.MustParseAddr(address))
	if own {
		return "its own"
	}
	return strings.TrimPrefix(other, "test/")
}

func TestWhoseAnAddressIs(t *testing.T) {
	leaving := func(p *corev1.Pod) *corev1.Pod {
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = new(metav1.Now()), new(int64(30))
		return p
	}
	shared := func(p *corev1.Pod) *corev1.Pod { p.Spec.HostNetwork = true; return p }
	in := func(phase corev1.PodPhase, p *corev1.Pod) *corev1.Pod { p.Status.Phase = phase; return p }
	const x, y, node = "10.0.0.1", "10.0.0.2", "172.16.0.1"
	for name, tc := range map[string]struct {
		play func(a *addressed)
		want map[string]string // by who says so and where from: "its own", another one's name, "" for nobody's
	}{
		"nobody is known":    {func(*addressed) {}, map[string]string{"a " + x: ""}},
		"a pod's":            {func(a *addressed) { a.tell(a.pod("a", 0, x)) }, map[string]string{"a " + x: "its own", "b " + x: "a", "a " + y: "", "a ::ffff:" + x: "its own"}},
		"no address yet":     {func(a *addressed) { a.tell(a.pod("a", 0)) }, map[string]string{"a " + x: "", "a ::": ""}},
		"no such address":    {func(a *addressed) { a.tell(a.pod("a", 0, "x", x)) }, map[string]string{"a " + x: "its own"}},
		"it comes later":     {func(a *addressed) { a.tell(a.pod("a", 0)); a.tell(a.pod("a", 0, x)) }, map[string]string{"a " + x: "its own", "b " + x: "a"}},
		"both families":      {func(a *addressed) { a.tell(a.pod("a", 0, x, "fd00::1")) }, map[string]string{"a fd00::1": "its own", "b fd00::1": "a", "b " + x: "a"}},
		"another one's":      {func(a *addressed) { a.tell(a.pod("a", 0, x)); a.tell(a.pod("b", 0, y)) }, map[string]string{"a " + y: "b", "b " + x: "a", "c " + x: "a"}},
		"on the node's":      {func(a *addressed) { a.tell(shared(a.pod("a", 0, node))) }, map[string]string{"a " + node: "its own", "b " + node: "", "a " + x: ""}},
		"two on the node's":  {func(a *addressed) { a.tell(shared(a.pod("a", 0, node))); a.tell(shared(a.pod("b", 0, node))) }, map[string]string{"a " + node: "its own", "b " + node: "its own"}},
		"gone":               {func(a *addressed) { a.tell(a.pod("a", 0, x)); a.goes("a") }, map[string]string{"a " + x: "", "b " + x: ""}},
		"has ended":          {func(a *addressed) { a.tell(a.pod("a", 0, x)); a.tell(in(corev1.PodSucceeded, a.pod("a", 0, x))) }, map[string]string{"a " + x: "", "b " + x: ""}},
		"has failed":         {func(a *addressed) { a.tell(in(corev1.PodFailed, a.pod("a", 0, x))) }, map[string]string{"a " + x: "", "b " + x: ""}},
		"is being deleted":   {func(a *addressed) { a.tell(a.pod("a", 0, x)); a.tell(leaving(a.pod("a", 0, x))) }, map[string]string{"a " + x: "its own", "b " + x: ""}},
		"used again":         {func(a *addressed) { a.tell(a.pod("a", time.Hour, x)); a.tell(a.pod("b", 0, x)) }, map[string]string{"b " + x: "its own", "a " + x: "b"}},
		"used again, unseen": {func(a *addressed) { a.tell(a.pod("b", 0, x)); a.tell(a.pod("a", time.Hour, x)) }, map[string]string{"b " + x: "its own", "a " + x: "b"}},
		"used again, and the old one goes": {
			func(a *addressed) { a.tell(a.pod("a", time.Hour, x)); a.tell(a.pod("b", 0, x)); a.goes("a") },
			map[string]string{"b " + x: "its own", "a " + x: "b"},
		},
		"used again, and the new one goes": {
			func(a *addressed) { a.tell(a.pod("a", time.Hour, x)); a.tell(a.pod("b", 0, x)); a.goes("b") },
			map[string]string{"a " + x: "its own", "b " + x: ""},
		},
		"a StatefulSet's next": {func(a *addressed) { a.tell(a.pod("a", time.Hour, x)); a.tell(a.pod("a", 0, y)) }, map[string]string{"a " + y: "its own", "a " + x: "", "b " + x: ""}},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAddressed(t)
			tc.play(a)
			for who, want := range tc.want {
				says, address, _ := strings.Cut(who, " ")
				if got := a.whose(says, address); got != want {
					t.Errorf("%s: got %q, want %q", who, got, want)
				}
			}
		})
	}
}

// What may change whose an address is is told; what does not is not, since streams are looked at
// anew for it.
func TestChangesOfAddressesAreTold(t *testing.T) {
	a := newAddressed(t)
	for _, step := range []struct {
		what string
		do   func()
		told bool
	}{
		{"a pod comes", func() { a.tell(a.pod("a", 0)) }, true},
		{"its address comes", func() { a.tell(a.pod("a", 0, "10.0.0.1")) }, true},
		{"it becomes ready", func() { a.tell(a.pod("a", 0, "10.0.0.1")) }, false},
		{"its deletion begins", func() {
			p := a.pod("a", 0, "10.0.0.1")
			p.DeletionTimestamp = new(metav1.Now())
			a.tell(p)
		}, true},
		{"it goes", func() { a.goes("a") }, true},
	} {
		before := a.Changes()
		if step.do(); a.Changes() != before != step.told {
			t.Errorf("%s: told %v, want %v", step.what, a.Changes() != before, step.told)
		}
	}
	if len(a.addresses.pods) != 0 {
		t.Errorf("%d addresses are left", len(a.addresses.pods))
	}
}

// A pending pod exists, and its sidecar may run before its app does; nothing is expected of it.
func TestAPendingPodExistsAndIsNotExpected(t *testing.T) {
	a := newAddressed(t)
	state := func(want string) {
		t.Helper()
		exists, left := a.Exists("test", "a")
		got := fmt.Sprintf("exists %v, left %v, expected %d, its own address %v", exists, !left.IsZero(), len(podsOf(a.Pods)), a.whose("a", "10.0.0.1") != "")
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	state("exists false, left false, expected 0, its own address false")
	p := a.pod("a", 0)
	p.Status.Phase, p.Annotations = corev1.PodPending, map[string]string{meshpod.StatusAnnotation: "{}"}
	a.tell(p)
	p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}}
	a.tell(p)
	state("exists true, left false, expected 0, its own address true")
	p.Status.Phase = corev1.PodRunning
	a.tell(p)
	state("exists true, left false, expected 1, its own address true")
	a.goes("a")
	state("exists false, left true, expected 1, its own address false")
	p.Status.Phase = corev1.PodPending // another one of its name, which never runs
	a.tell(p)
	a.goes("a")
	state("exists false, left true, expected 1, its own address false")
	if len(a.addresses.pods) != 0 {
		t.Errorf("%d addresses are left", len(a.addresses.pods))
	}
}

// Who may report as a waypoint is told by the pod that the API server has, whatever the pod says of
// itself.
func TestTheIndexKnowsWaypoints(t *testing.T) {
	a := newAddressed(t)
	waypoint := a.pod("waypoint", 0)
	waypoint.Labels = map[string]string{meshpod.ManagedLabel: "istio.io-mesh-controller"}
	gateway := a.pod("gateway", 0)
	gateway.Labels = map[string]string{meshpod.ManagedLabel: "istio.io-gateway-controller"}
	for _, p := range []*corev1.Pod{waypoint, gateway, a.pod("web", 0)} {
		a.tell(p)
	}
	for name, want := range map[string]bool{"waypoint": true, "gateway": false, "web": false, "nobody": false} {
		if p, _, _ := a.Known("test", name); p.Waypoint != want {
			t.Errorf("%s is a waypoint: %v, want %v", name, p.Waypoint, want)
		}
	}
}

// A pod's service account is known from the moment that it is, before it runs, and no longer than
// it exists. Pods of one workload have it on their own.
func TestThePodTellsItsServiceAccount(t *testing.T) {
	a := newAddressed(t)
	runsAs := func(name, account string, phase corev1.PodPhase) {
		p := a.pod(name, 0)
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "StatefulSet", Name: "web", Controller: new(true)}}
		p.GenerateName, p.Spec.ServiceAccountName, p.Status.Phase = "web-", account, phase
		a.tell(p)
	}
	runsAs("web-0", "web", corev1.PodPending)
	runsAs("web-1", "default", corev1.PodRunning)
	runsAs("web-2", "web", corev1.PodRunning)
	a.goes("web-2")
	for name, want := range map[string]string{"web-0": "web", "web-1": "default", "web-2": "", "web-3": ""} {
		if got, _ := a.ServiceAccount("test", name); got != want {
			t.Errorf("%s runs as %q, want %q", name, got, want)
		}
	}
	if got, _ := a.ServiceAccount("other", "web-0"); got != "" {
		t.Errorf("a pod of its name in another namespace runs as %q", got)
	}
	a.now = a.now.Add(time.Minute)
	runsAs("web-2", "other", corev1.PodPending)
	if got, created := a.ServiceAccount("test", "web-2"); got != "other" || !created.Equal(a.now) {
		t.Errorf("a new pod of the name runs as %q since %v, want its own", got, created)
	}
}

// heldIndex is an index whose answer to whether a pod exists waits.
type heldIndex struct {
	*Pods
	once        *sync.Once
	asked, goOn chan struct{}
}

func (heldIndex) InStep() bool { return true }
func (heldIndex) Fresh() bool  { return true }

func (s heldIndex) Exists(namespace, name string) (bool, time.Time) {
	s.once.Do(func() { close(s.asked) })
	<-s.goOn
	return s.Pods.Exists(namespace, name)
}

// An answer looks at pods with the index' mutex held for reading and asks the store for each; a
// stream that opens asks the index with the mutex of the store's tables held. While a change of the
// index waits between them, all three wait for ever.
func TestAnAnswerAndAStreamThatOpensDoNotWaitForEachOther(t *testing.T) {
	a := newAddressed(t)
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	asked, goOn := make(chan struct{}), make(chan struct{})
	store.SetPods(heldIndex{a.Pods, &sync.Once{}, asked, goOn})
	a.tell(a.pod("known", time.Hour, "10.0.0.1"))
	other := a.pod("other", time.Hour, "10.0.0.2")
	kept, _ := a.Transform(other)
	a.Each([]aggregator.Meant{{}}, a.now, func(*Pod) { // as holder.look does
		go store.Connect(aggregator.Pod{Namespace: "test", Name: "phantom"})
		<-asked
		go a.add(kept) // news of a pod
		for a.mu.TryRLock() {
			a.mu.RUnlock()
			runtime.Gosched()
		}
		close(goOn)
		done := make(chan struct{})
		go func() { store.Pod("test", "known", a.now, time.Minute); close(done) }() // looking.state
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Error("deadlock: the answer waits for the store's tables, the stream for the index, and the news for the answer")
		}
	})
}
