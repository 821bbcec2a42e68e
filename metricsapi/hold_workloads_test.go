package metricsapi

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/cluster/meshpod"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// sentBy is what the sidecars of a workload's pods send: each so many requests a second of so many
// milliseconds, with a flush every 5 s.
type sentBy struct {
	workload string
	pods     []string
	from, to time.Duration // of the flushes, since the store's start
	rps, ms  float64
	source   bool // as the caller of somebody else
	waypoint bool // as podinfo's waypoint
}

func (s sentBy) Describe(i int) (string, []aggregator.Label, error) {
	labels := []aggregator.Label{
		{Name: "reporter", Value: "destination"}, {Name: "destination_workload", Value: s.workload}, {Name: "destination_workload_namespace", Value: "test"},
	}
	switch {
	case s.source:
		labels = []aggregator.Label{{Name: "reporter", Value: "source"}, {Name: "source_workload", Value: s.workload}, {Name: "source_workload_namespace", Value: "test"}}
	case s.waypoint:
		labels[0].Value, labels[1].Value = "waypoint", "podinfo"
	}
	return []string{"istio_requests_total", "istio_request_duration_milliseconds"}[i], labels, nil
}

func (s sentBy) send(store *aggregator.Store) {
	for _, pod := range s.pods {
		st := store.Connect(aggregator.Pod{Namespace: "test", Name: pod, Workload: s.workload, CanonicalService: s.workload, FlushInterval: 5 * time.Second})
		count := 0.0
		for at := s.from; at <= s.to; at += 5 * time.Second {
			arrival := store.Started().Add(at)
			count += 5 * s.rps
			b := &aggregator.Batch{Timestamp: arrival.UnixMilli()}
			b.Samples = []aggregator.Sample{
				{Key: 1, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: count},
				{Key: 2, Timestamp: b.Timestamp, Kind: aggregator.Histogram, Count: uint64(5 * s.rps), Value: 5 * s.rps * s.ms, Last: 1},
			}
			b.Buckets = []aggregator.Bucket{{UpperBound: 1000, Count: uint64(5 * s.rps)}}
			if st.Commit(arrival, b, s) != nil {
				panic("superseded")
			}
		}
		st.Close()
	}
}

// heldCluster is a namespace with an HPA of podinfo.
type heldCluster struct {
	store  *aggregator.Store
	pods   fixedPods
	target string // of the HPA, an average
	scale  int32  // podinfo has so many replicas
	change func(*holder)
}

func newHeldCluster(t *testing.T, sent ...sentBy) *heldCluster {
	t.Helper()
	store, err := aggregator.New(aggregator.Config{Retention: 15 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sent {
		s.send(store)
	}
	return &heldCluster{store: store, target: "10", scale: 3}
}

// add makes pods that exist since a time after the store's start.
func (c *heldCluster) add(workload string, created time.Duration, names ...string) {
	for _, name := range names {
		c.pods = append(c.pods, cluster.Pod{
			Wired: true, Created: c.store.Started().Add(created),
			Identity: aggregator.Pod{Namespace: "test", Name: name, Workload: workload, CanonicalService: workload},
		})
	}
}

// answer is what the HPA gets at a time after the store's start.
func (c *heldCluster) answer(expr string, at time.Duration) (verdict, *refusal) {
	asker := asking("podinfo", autoscalingv2.AverageValueMetricType, c.target, c.scale)
	asker.Spec.MaxReplicas = 100
	p := register(c.store, preparedKey{namespace: "test", expr: expr})
	defer p.close()
	o := &offer{offerKey: offerKey{namespace: "test", metric: "rps"}, prepared: p, owner: asker, askers: []*hpas.Wants{asker}}
	h := &holder{
		pods: c.pods, scales: fixedScale(c.scale), store: c.store, started: c.store.Started(), hold: 5 * time.Minute,
		status: func(string, string) (int32, bool) { return c.scale, true },
	}
	if c.change != nil {
		c.change(h)
	}
	r := rules{retention: 5 * time.Minute, started: c.store.Started(), holder: h}
	v, _, refused := r.evaluate(context.Background(), "metric rps", o, p, c.store.Started().Add(at))
	return v, refused
}

// shown is a verdict in short.
func shown(v verdict) string {
	s := resource.NewMilliQuantity(v.sum(), resource.DecimalSI).String()
	if v.held {
		s += " held"
	}
	return fmt.Sprintf("%s, %d expected", s, v.expected)
}

// One of four pods is back after a restart of meshpulse: whatever makes the pods, the replicas
// stay.
func TestPodsOfEveryKindOfWorkloadAreWaitedFor(t *testing.T) {
	injected := map[string]string{meshpod.StatusAnnotation: "{}"}
	const inbound = `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`
	for what, tc := range map[string]struct {
		kind, owner string
		labels      map[string]string
		annotations map[string]string
		expr        string
		by          sentBy
	}{
		"Deployment":          {kind: "ReplicaSet", owner: "podinfo-abc", labels: map[string]string{"pod-template-hash": "abc"}, annotations: injected},
		"Rollout":             {kind: "ReplicaSet", owner: "podinfo-abc", labels: map[string]string{"rollouts-pod-template-hash": "abc"}, annotations: injected},
		"workload-name":       {kind: "ReplicaSet", owner: "podinfo-blue-abc", labels: map[string]string{"pod-template-hash": "abc", meshpod.WorkloadNameLabel: "podinfo"}, annotations: injected},
		"DeploymentConfig":    {kind: "ReplicationController", owner: "podinfo-7", labels: map[string]string{"deploymentconfig": "podinfo"}, annotations: injected},
		"StatefulSet":         {kind: "StatefulSet", owner: "podinfo", annotations: injected},
		"native sidecar":      {kind: "StatefulSet", owner: "podinfo", annotations: map[string]string{meshpod.StatusAnnotation: `{"initContainers":["istio-init","istio-proxy"],"containers":null}`}},
		"Gateway API gateway": {kind: "ReplicaSet", owner: "podinfo-abc", labels: map[string]string{"pod-template-hash": "abc", meshpod.ManagedLabel: "istio.io-gateway-controller"}},
		"a gateway as a caller": {
			kind: "ReplicaSet", owner: "podinfo-abc", labels: map[string]string{"pod-template-hash": "abc", meshpod.ManagedLabel: "istio.io-gateway-controller"},
			expr: `sum(rate(istio_requests_total{source_workload="podinfo",reporter="source"}[1m]))`, by: sentBy{source: true},
		},
		"waypoint": {
			kind: "ReplicaSet", owner: "waypoint-abc", labels: map[string]string{"pod-template-hash": "abc", meshpod.ManagedLabel: "istio.io-mesh-controller"},
			expr: `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="waypoint"}[1m]))`, by: sentBy{workload: "waypoint", waypoint: true},
		},
	} {
		t.Run(what, func(t *testing.T) {
			by := tc.by
			by.pods, by.from, by.to, by.rps = []string{"p-0"}, 5*time.Second, 2*time.Minute, 5
			by.workload = cmp.Or(by.workload, "podinfo")
			c := newHeldCluster(t, by)
			c.target, c.scale = "5", 4
			c.add("other", -time.Hour, "other") // which the query does not mean
			index, err := cluster.NewPods(nil, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 4 {
				kept, err := index.Transform(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{
					Namespace: "test", Name: fmt.Sprintf("p-%d", i), GenerateName: "p-", Labels: tc.labels, Annotations: tc.annotations,
					CreationTimestamp: metav1.NewTime(c.store.Started().Add(-time.Hour)),
					OwnerReferences:   []metav1.OwnerReference{{Kind: tc.kind, Name: tc.owner, Controller: new(true)}},
				}})
				if err != nil {
					t.Fatal(err)
				}
				index.OnAdd(kept, true)
			}
			index.Each([]aggregator.Meant{{}}, time.Time{}, func(p *cluster.Pod) { c.pods = append(c.pods, *p) })
			if v, refused := c.answer(cmp.Or(tc.expr, inbound), 2*time.Minute); refused != nil || shown(v) != "20 held, 4 expected" {
				t.Errorf("got %s (%s), refused %v, want 20 held, 4 expected", shown(v), v.reason, refused)
			}
		})
	}
}

// An expression of several selectors waits for the pods of each: a waypoint's beside a workload's,
// any pod's beside both.
func TestEachSelectorWaitsForThePodsThatItMeans(t *testing.T) {
	const (
		podinfo  = `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`
		waypoint = `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="waypoint"}[1m]))`
		any      = `sum(rate(istio_requests_total{reporter="destination"}[1m]))`
		at       = 2 * time.Minute
	)
	for name, tc := range map[string]struct {
		expr         string
		back, silent []string // since our start, and not any more
		want         string
	}{
		"all are back":                           {expr: podinfo + " + " + waypoint, back: []string{"p1", "p2", "w1", "w2"}, want: "20, 4 expected"},
		"a waypoint is not back":                 {expr: podinfo + " + " + waypoint, back: []string{"p1", "p2", "w1"}, want: "30 held, 4 expected"},
		"one of the workload is not back":        {expr: podinfo + " + " + waypoint, back: []string{"p1", "w1", "w2"}, want: "30 held, 4 expected"},
		"the other way round":                    {expr: waypoint + " + " + podinfo, back: []string{"p1", "w1", "w2"}, want: "30 held, 4 expected"},
		"one of the workload is silent":          {expr: podinfo + " + " + waypoint, back: []string{"p1", "w1", "w2"}, silent: []string{"p2"}, want: "30 held, 4 expected"},
		"of what is in place of waypoints":       {expr: waypoint + " or " + podinfo, back: []string{"p1", "w1", "w2"}, want: "30 held, 4 expected"},
		"waypoints alone do not wait for it":     {expr: waypoint, back: []string{"p1", "w1", "w2"}, want: "10, 3 expected"},
		"the workload does not wait for them":    {expr: podinfo, back: []string{"p1", "p2", "w1"}, want: "10, 2 expected"},
		"any pod's, beside the workload's":       {expr: podinfo + " + " + any, back: []string{"p1", "w1", "w2", "o"}, want: "30 held, 4 expected"},
		"any pod's, and who is not named stays":  {expr: podinfo + " + " + any, back: []string{"p1", "p2", "w1", "w2"}, want: "30 held, 4 expected"},
		"any pod's, and none of the workload is": {expr: podinfo + " + " + any, back: []string{"w1", "w2", "o"}, want: "30 held, 3 expected"},
		"any pod's, and all are back":            {expr: podinfo + " + " + any, back: []string{"p1", "p2", "w1", "w2", "o"}, want: "25, 5 expected"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newHeldCluster(t)
			c.target = "10"
			send := func(pod string, to time.Duration) {
				by := sentBy{workload: map[byte]string{'p': "podinfo", 'w': "waypoint", 'o': "other"}[pod[0]], pods: []string{pod}, from: 5 * time.Second, to: to, rps: 5, waypoint: pod[0] == 'w'}
				by.send(c.store)
			}
			for _, pod := range tc.back {
				send(pod, at)
			}
			for _, pod := range tc.silent {
				send(pod, at-30*time.Second)
			}
			c.add("podinfo", -time.Hour, "p1", "p2")
			c.add("waypoint", -time.Hour, "w1", "w2")
			c.add("other", -time.Hour, "o")
			for i := range c.pods {
				c.pods[i].Waypoint = c.pods[i].Identity.Workload == "waypoint"
			}
			if v, refused := c.answer(tc.expr, at); refused != nil || shown(v) != tc.want {
				t.Errorf("got %s (%s), refused %v, want %s", shown(v), v.reason, refused, tc.want)
			}
		})
	}
}

const unnamed = `sum(rate(istio_requests_total{reporter="destination"}[1m]))`

const namespaceWide = `sum(rate(istio_requests_total{destination_workload_namespace="test",reporter="destination"}[1m]))`

// The guides' query means all of a namespace, and beside what is scaled there is a load tester
// whose sidecar was never pointed at meshpulse: until the hold is over the answer keeps the
// replicas or more, then it is the truth. The replicas go where the load asks.
func TestAWorkloadThatWasNeverPointedAtMeshpulse(t *testing.T) {
	const hold, whole = 5 * time.Minute, 10 * time.Minute
	for name, tc := range map[string]struct {
		testers    int
		podinfo    time.Duration // when the pods were made, since our start
		tester     time.Duration
		at         time.Duration
		rps        float64 // of each of three podinfo
		want       string
		held, told bool
	}{
		"alone":                              {podinfo: -time.Hour, at: whole, rps: 5, want: "15, 3 expected"},
		"while it is waited for":             {testers: 1, podinfo: -time.Hour, tester: -time.Hour, at: 2 * time.Minute, rps: 1, want: "22500m held, 4 expected"},
		"while it is waited for, more load":  {testers: 1, podinfo: -time.Hour, tester: -time.Hour, at: 2 * time.Minute, rps: 10, want: "30, 4 expected"},
		"at the end of the hold":             {testers: 1, podinfo: -time.Hour, tester: -time.Hour, at: hold, rps: 1, want: "22500m held, 4 expected"},
		"after a restart, three replicas":    {testers: 1, podinfo: -time.Hour, tester: -time.Hour, at: whole, rps: 7, want: "21, 3 expected", told: true},
		"after a restart, two replicas":      {testers: 1, podinfo: -time.Hour, tester: -time.Hour, at: whole, rps: 5, want: "15, 3 expected", told: true},
		"after a restart, one replica":       {testers: 1, podinfo: -time.Hour, tester: -time.Hour, at: whole, rps: 1, want: "3, 3 expected", told: true},
		"after a restart, nine load testers": {testers: 9, podinfo: -time.Hour, tester: -time.Hour, at: whole, rps: 5, want: "15, 3 expected", told: true},
		"before one, two replicas":           {testers: 1, podinfo: 5 * time.Second, tester: 5 * time.Second, at: whole, rps: 5, want: "15, 3 expected", told: true},
		"before one, one replica":            {testers: 1, podinfo: 5 * time.Second, tester: 5 * time.Second, at: whole, rps: 1, want: "3, 3 expected", told: true},
		"a new load tester":                  {testers: 1, podinfo: -time.Hour, tester: whole - 4*time.Minute, at: whole, rps: 1, want: "22500m held, 4 expected"},
		"a load tester of a hold ago":        {testers: 1, podinfo: -time.Hour, tester: whole - hold - time.Second, at: whole, rps: 1, want: "3, 3 expected", told: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := newHeldCluster(t, sentBy{workload: "podinfo", pods: []string{"a", "b", "c"}, from: 10 * time.Second, to: tc.at, rps: tc.rps})
			c.target = "7500m"
			c.add("podinfo", tc.podinfo, "a", "b", "c")
			for i := range tc.testers {
				c.add("loadtester", tc.tester, fmt.Sprintf("tester-%d", i))
			}
			v, refused := c.answer(namespaceWide, tc.at)
			if refused != nil || shown(v) != tc.want {
				t.Errorf("got %s (%s), refused %v, want %s", shown(v), v.reason, refused, tc.want)
			}
			told := slices.ContainsFunc(v.problems, func(p hpas.Problem) bool {
				return p.Reason == hpas.ReasonUnpointedSidecars && strings.Contains(p.Message, "test/loadtester has sidecars that are not pointed at meshpulse")
			})
			if others := slices.ContainsFunc(v.problems, func(p hpas.Problem) bool { return p.Reason == hpas.ReasonMuteSidecars }); told != tc.told || others {
				t.Errorf("told %v, want %v: %v", told, tc.told, v.problems)
			}
		})
	}
}

// What one workload's pods leave out is estimated from its own pods. Where no pod reports there is
// nothing to answer.
func TestWhatIsUnknownOfAWorkload(t *testing.T) {
	const whole = 10 * time.Minute
	sent := func(workload string, to time.Duration, rps float64, pods ...string) sentBy {
		return sentBy{workload: workload, pods: pods, from: 5 * time.Second, to: to, rps: rps}
	}
	for name, tc := range map[string]struct {
		sent []sentBy
		pods func(*heldCluster)
		expr string
		at   time.Duration
		want string // "" is a refusal
	}{
		"mute beside a workload of another size": {
			sent: []sentBy{sent("small", whole, 2, "s"), sent("large", whole, 20, "l1", "l2")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s", "s2", "s3")
				c.add("large", -time.Hour, "l1", "l2")
			},
			want: "46, 5 expected", // 3 x 2 and 2 x 20
		},
		"mute in both": {
			sent: []sentBy{sent("small", whole, 2, "s"), sent("large", whole, 20, "l1", "l2")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s", "s2")
				c.add("large", -time.Hour, "l1", "l2", "l3")
			},
			want: "64, 5 expected",
		},
		"mute beside one that was never pointed at us, whose pod has left": {
			sent: []sentBy{sent("small", whole, 2, "s")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s", "s2")
				c.add("loadtester", -time.Hour, "t", "t2")
				c.pods[3].Left = c.store.Started().Add(whole - 30*time.Second)
			},
			want: "30 held, 2 expected",
		},
		"a pod leaves a workload, and another's are mute": {
			sent: []sentBy{sent("small", whole, 2, "s"), sent("large", whole, 20, "l1"), sent("large", whole-20*time.Second, 20, "l2")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s", "s2")
				c.add("large", -time.Hour, "l1", "l2")
				c.pods[3].Left = c.store.Started().Add(whole - 20*time.Second)
			},
			want: "38167m, 3 expected", // who serves in its place is of its workload, whose pods all tell
		},
		"all of a workload fell silent long ago": {
			sent: []sentBy{sent("small", whole, 2, "s"), sent("large", 2*time.Minute, 20, "l1")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s")
				c.add("large", -time.Hour, "l1")
			},
			want: "30 held, 2 expected",
		},
		"all of a workload fell silent more than an hour ago": {
			sent: []sentBy{sent("small", 65*time.Minute, 2, "s"), sent("large", 2*time.Minute, 20, "l1")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s")
				c.add("large", -time.Hour, "l1")
			},
			at: 65 * time.Minute, want: "2, 1 expected",
		},
		"mute, of a query that names nobody": {
			sent: []sentBy{sent("small", whole, 2, "s"), sent("small", 4*time.Minute, 2, "s2"), sent("large", whole, 20, "l1")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s", "s2")
				c.add("large", -time.Hour, "l1")
			},
			expr: `sum(rate(istio_requests_total[1m]))`, want: "24, 3 expected",
		},
		"not back since our start, beside another workload, of a query that names nobody": {
			sent: []sentBy{sent("small", 2*time.Minute, 2, "s")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s")
				c.add("large", -time.Hour, "l1", "l2")
			},
			expr: unnamed, at: 2 * time.Minute, want: "30 held, 3 expected",
		},
		"never heard of since our start, beside another workload, of a query that names nobody": {
			sent: []sentBy{sent("small", whole, 2, "s")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s")
				c.add("large", -time.Hour, "l1", "l2")
			},
			expr: unnamed, want: "2, 1 expected",
		},
		"a Job's and one that is younger than our start, not heard of, of a query that names nobody": {
			sent: []sentBy{sent("small", 2*time.Minute, 2, "s")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s")
				c.add("job", -time.Hour, "j")
				c.pods[1].Batch = true
				c.add("large", time.Minute, "l1")
			},
			expr: unnamed, at: 2 * time.Minute, want: "2, 1 expected",
		},
		"just begun, beside another workload, of a query that names nobody": { // somewhere a pod begins all the time
			sent: []sentBy{sent("small", whole, 2, "s"), {workload: "caller", pods: []string{"c"}, from: whole - 10*time.Second, to: whole, source: true}},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s")
				c.add("large", whole-10*time.Second, "l1")
				c.add("caller", whole-15*time.Second, "c")
				c.add("caller", whole-5*time.Second, "c2")
			},
			expr: unnamed, want: "2, 2 expected",
		},
		"a caller is not back since our start, of a query that names whom it calls": {
			sent: []sentBy{{workload: "caller", pods: []string{"c"}, from: 5 * time.Second, to: 2 * time.Minute, rps: 2, source: true}},
			pods: func(c *heldCluster) { c.add("caller", -time.Hour, "c", "c2") },
			expr: `sum(rate(istio_requests_total{reporter="source",destination_workload=""}[1m]))`, at: 2 * time.Minute, want: "30 held, 2 expected",
		},
		"mute beside one that has just come, which says nothing of a mean": {
			sent: []sentBy{sent("small", whole, 20, "s"), {workload: "small", pods: []string{"y"}, from: whole - 5*time.Second, to: whole, rps: 20}},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s", "s2")
				c.add("small", whole-15*time.Second, "y")
			},
			want: "43333m, 3 expected", // twice 20, and what it has told
		},
		"mute beside many that have just come": {
			sent: []sentBy{sent("small", whole, 20, "s"), {workload: "small", pods: []string{"y1", "y2", "y3", "y4"}, from: whole - 50*time.Second, to: whole, rps: 20}},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s", "s2")
				c.add("small", whole-55*time.Second, "y1", "y2", "y3", "y4")
			},
			want: "113333m, 6 expected", // twice 20, and 73.3 that they have told: not twice that
		},
		"mute beside many that have just come and another workload": {
			sent: []sentBy{
				sent("small", whole, 20, "s"), {workload: "small", pods: []string{"y1", "y2", "y3", "y4"}, from: whole - 50*time.Second, to: whole, rps: 20}, sent("large", whole, 30, "l"),
			},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s", "s2")
				c.add("small", whole-55*time.Second, "y1", "y2", "y3", "y4")
				c.add("large", -time.Hour, "l")
			},
			want: "143333m, 7 expected",
		},
		"all of a workload are mute, and those that reported have left long ago": {
			sent: []sentBy{sent("small", whole, 2, "s"), sent("large", 2*time.Minute, 20, "l1")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s")
				c.add("large", -time.Hour, "l1")
				c.pods[1].Left = c.store.Started().Add(2 * time.Minute)
				c.add("large", 2*time.Minute, "l2") // a rollout that has lost the way to us
			},
			want: "30 held, 2 expected",
		},
		"all of all": {
			pods: func(c *heldCluster) { c.add("small", -time.Hour, "s") },
		},
		"all of what the query means, beside others": {
			sent: []sentBy{sent("large", whole, 20, "l1")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s")
				c.add("large", -time.Hour, "l1")
			},
			expr: `sum(rate(istio_requests_total{destination_workload="small",destination_workload_namespace="test",reporter="destination"}[1m]))`,
		},
		"no requests, and one is mute: a mean of nothing is nothing": {
			sent: []sentBy{sent("small", whole, 0, "s"), sent("small", 4*time.Minute, 0, "s2"), sent("large", whole, 0, "l1")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s", "s2")
				c.add("large", -time.Hour, "l1")
			},
			want: "0, 3 expected",
		},
		"mute beside one that is not back over the window: what is seen is not counted as more than that": {
			sent: []sentBy{sent("small", whole, 20, "s"), {workload: "large", pods: []string{"l1"}, from: whole - 20*time.Second, to: whole, rps: 1}},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s", "s2")
				c.add("large", -time.Hour, "l1")
			},
			want: "30 held, 3 expected", // what is seen, 20, asks for less; twice that would ask for more
		},
		"no request yet, beside one that was never pointed at us": {
			sent: []sentBy{sent("small", whole, 2, "s")},
			pods: func(c *heldCluster) {
				c.add("small", -time.Hour, "s")
				c.add("loadtester", -time.Hour, "t")
			},
			expr: strings.Replace(namespaceWide, "reporter", `response_code="500",reporter`, 1),
			want: "0, 1 expected",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newHeldCluster(t, tc.sent...)
			tc.pods(c)
			v, refused := c.answer(cmp.Or(tc.expr, namespaceWide), cmp.Or(tc.at, whole))
			if tc.want == "" {
				if refused == nil || refused.outcome != outcomeNoSidecar {
					t.Errorf("got %s (%s), refused %v, want %s", shown(v), v.reason, refused, outcomeNoSidecar)
				}
			} else if refused != nil || shown(v) != tc.want {
				t.Errorf("got %s (%s), refused %v, want %s", shown(v), v.reason, refused, tc.want)
			}
		})
	}
}

// Where the pods of each workload are alike, what is answered of some of them is what all of them
// would give, whatever form the query has.
func TestTheMeanOfAWorkloadIsItsOwn(t *testing.T) {
	const whole = 10 * time.Minute
	random := rand.New(rand.NewPCG(7, 0))
	for _, expr := range []string{
		`sum(rate(istio_requests_total{R}[1m]))`,
		`60 * sum(rate(istio_requests_total{R}[1m]))`,
		`sum by (destination_workload) (rate(istio_requests_total{R}[1m]))`,
		`sum(sum by (namespace, pod) (rate(istio_requests_total{R}[1m])))`,
		`sum(increase(istio_requests_total{R}[1m])) / 60 + sum(rate(istio_request_duration_milliseconds_count{R}[1m]))`,
		`sum(rate(istio_request_duration_milliseconds_sum{R}[1m])) / sum(rate(istio_request_duration_milliseconds_count{R}[1m]))`,
		`avg(rate(istio_requests_total{R}[1m]))`,
		`sum(rate(istio_requests_total{R}[1m])) / count(rate(istio_requests_total{R}[1m]))`,
		`sum(rate(istio_requests_total{destination_workload="w-0"}[1m])) / sum(rate(istio_requests_total{R}[1m]))`,
		`max(sum by (pod) (rate(istio_requests_total{R}[1m])))`,
		`histogram_quantile(0.9, sum by (le) (rate(istio_request_duration_milliseconds_bucket{R}[1m])))`,
	} {
		expr = strings.ReplaceAll(expr, "R", `destination_workload_namespace="test",reporter="destination"`)
		for range 5 {
			all, some := newHeldCluster(t), newHeldCluster(t)
			for i := range 2 + random.IntN(3) {
				s := sentBy{workload: fmt.Sprintf("w-%d", i), from: 5 * time.Second, to: whole, rps: float64(1 + random.IntN(50)), ms: float64(1 + random.IntN(200))}
				var names []string
				for p := range 1 + random.IntN(5) {
					names = append(names, fmt.Sprintf("%s-%d", s.workload, p))
				}
				reporting := 1 + random.IntN(len(names))
				s.pods = names
				s.send(all.store)
				s.pods = names[:reporting]
				s.send(some.store)
				for _, c := range []*heldCluster{all, some} {
					c.add(s.workload, -time.Hour, names...)
				}
			}
			for _, c := range []*heldCluster{all, some} {
				c.target = "1m" // whatever is seen asks for more
			}
			want, refused := all.answer(expr, whole)
			if refused != nil {
				t.Fatalf("%s: %v", expr, refused)
			}
			got, refused := some.answer(expr, whole)
			if refused != nil || math.Abs(float64(got.sum()-want.sum())) > max(2, 0.001*float64(want.sum())) {
				t.Errorf("%s: got %s (%s), refused %v, all of them give %s", expr, shown(got), got.reason, refused, shown(want))
			}
		}
	}
}

// Where the estimate cannot be computed the replicas stay.
func TestAnEstimateThatFailsKeepsTheReplicas(t *testing.T) {
	const whole = 10 * time.Minute
	c := newHeldCluster(t, sentBy{workload: "small", pods: []string{"s"}, from: 5 * time.Second, to: whole, rps: 2}, sentBy{workload: "large", pods: []string{"l"}, from: 5 * time.Second, to: whole, rps: 20})
	c.add("small", -time.Hour, "s")
	c.add("large", -time.Hour, "l", "l2")
	var h *holder
	c.change = func(of *holder) { h = of }
	if v, refused := c.answer(namespaceWide, whole); refused != nil || shown(v) != "42, 3 expected" {
		t.Fatalf("got %s, refused %v", shown(v), refused)
	}
	p, at := register(c.store, preparedKey{namespace: "test", expr: namespaceWide}), c.store.Started().Add(whole)
	asker := asking("podinfo", autoscalingv2.AverageValueMetricType, "20", 3)
	asker.Spec.MaxReplicas = 100
	o := &offer{offerKey: offerKey{namespace: "test", metric: "rps"}, prepared: p, owner: asker, askers: []*hpas.Wants{asker}}
	a, err := p.query.Eval(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	v, refused := h.estimate(ended, o, h.look(p, "test", a, at), verdict{items: []item{{milli: 22_000}}}, p, a, at)
	if refused != nil || !v.held || v.sum() != 60_000 {
		t.Errorf("got %s (%s), refused %v, want 60 held", shown(v), v.reason, refused)
	}
}
