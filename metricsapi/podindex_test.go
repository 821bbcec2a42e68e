package metricsapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/meshpulse/meshpulse/aggregator"
)

// newLargeIndex has workloads of ten pods each, 100 in a namespace, two of the same name in a canonical service of its own.
func newLargeIndex(t testing.TB, pods int) *podIndex {
	x, err := newPodIndex(nil, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for i := range pods {
		namespace, workload := i/1000, i/10%100
		x.put(&cachedPod{
			name: fmt.Sprintf("w-%d-%d", workload, i), of: unique.Make(kindred{
				namespace: fmt.Sprintf("ns-%d", namespace), workload: fmt.Sprintf("w-%d-%d", workload, namespace/2),
				canonical: fmt.Sprintf("c-%d", i/10), canonicalRevision: "latest",
			}),
			created: time.Now().Add(-time.Hour).Unix(), wired: true,
		})
	}
	return x
}

// countingPods counts what is looked at.
type countingPods struct {
	*podIndex
	looked int
}

func (c *countingPods) synced() error { return nil } // no informer runs

func (c *countingPods) each(sets []aggregator.Meant, since time.Time, f func(*knownPod)) {
	c.podIndex.each(sets, since, func(p *knownPod) { c.looked++; f(p) })
}

// lookup is a look at a query's pods in a cluster of 50,000.
type lookup struct {
	expr   string
	looked int
}

func lookups() map[string]lookup {
	return map[string]lookup{
		"a workload, no namespace":           {`sum(rate(istio_requests_total{destination_workload="w-7-7",reporter="destination"}[1m]))`, 20},
		"a workload of a namespace":          {`sum(rate(istio_requests_total{destination_workload="w-7-7",destination_workload_namespace="ns-14",reporter="destination"}[1m]))`, 10},
		"a workload of another":              {`sum(rate(istio_requests_total{destination_workload="w-7-7",destination_workload_namespace="ns-3",reporter="destination"}[1m]))`, 0},
		"a canonical service":                {`sum(rate(istio_requests_total{destination_canonical_service="c-77"}[1m]))`, 10},
		"a canonical service of a namespace": {`sum(rate(istio_requests_total{destination_canonical_service="c-77",destination_workload_namespace="ns-0"}[1m]))`, 10},
		"two workloads":                      {`sum(rate(istio_requests_total{destination_workload=~"w-7-7|w-8-8"}[1m]))`, 40},
		"a ratio over one":                   {`sum(rate(istio_request_duration_milliseconds_sum{destination_workload="w-7-7"}[1m])) / sum(rate(istio_request_duration_milliseconds_count{destination_workload="w-7-7"}[1m]))`, 20},
		"a caller":                           {`sum(rate(istio_requests_total{source_workload="w-7-7",reporter="source"}[1m]))`, 20},
		"a namespace":                        {`sum(rate(istio_requests_total{destination_workload_namespace="ns-14",reporter="destination"}[1m]))`, 1000},
		"a pod's namespace":                  {`sum(rate(istio_requests_total{destination_app="x",namespace="ns-14"}[1m]))`, 1000},
		"all":                                {`sum(rate(istio_requests_total{destination_workload=~".+",reporter="destination"}[1m]))`, 50000},
		"a pattern":                          {`sum(rate(istio_requests_total{destination_workload=~"w-7-.*",reporter="destination"}[1m]))`, 50000},
		"nobody named":                       {`sum(rate(istio_requests_total[1m]))`, 50000}, // as long as it is waited for those of before our start
	}
}

func TestALookCostsThePodsThatTheQueryCanMean(t *testing.T) {
	store := newTestStore(t)
	x := &countingPods{podIndex: newLargeIndex(t, 50_000)}
	h := &holder{pods: x, store: store, started: store.Started(), hold: 5 * time.Minute}
	for name, l := range lookups() {
		p := register(store, preparedKey{namespace: "test", expr: l.expr})
		a := aggregator.Answer{Window: time.Minute}
		at := store.Started().Add(time.Minute)
		x.looked = 0
		h.look(p, "test", a, at)
		if x.looked != l.looked {
			t.Errorf("%s: %d pods looked at, want %d", name, x.looked, l.looked)
		}
		h.hold = time.Second // nothing is held: the texts of what is are not counted
		if n := testing.AllocsPerRun(2, func() { h.look(p, "test", a, at) }); n > 10 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if x.looked = 0; !p.query.NamesPods() {
			if h.look(p, "test", a, at); x.looked != 0 {
				t.Errorf("%s: %d pods looked at when nobody is waited for any more", name, x.looked)
			}
		}
		h.hold = 5 * time.Minute
		x.looked = 0
		(&actor{pods: x, store: store}).newPods(p.query, agreement{}, 1, at)
		if want := map[bool]int{true: l.looked}[p.query.NamesPods()]; x.looked != want {
			t.Errorf("%s: %d pods looked at for new ones, want %d", name, x.looked, want)
		}
		p.close()
	}
}

func BenchmarkLook(b *testing.B) {
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		b.Fatal(err)
	}
	x := newLargeIndex(b, 50_000)
	h := &holder{pods: &countingPods{podIndex: x}, store: store, started: store.Started(), hold: 5 * time.Minute}
	for name, l := range lookups() {
		p := register(store, preparedKey{namespace: "test", expr: l.expr})
		b.Run(strings.ReplaceAll(name, " ", "-"), func(b *testing.B) {
			b.ReportAllocs()
			before, n := benchCPU(b), 0
			for b.Loop() {
				n++
				h.look(p, "test", aggregator.Answer{Window: time.Minute}, store.Started().Add(time.Minute))
			}
			b.ReportMetric(float64((benchCPU(b)-before).Microseconds())/float64(n), "µs-of-CPU/op")
		})
		p.close()
	}
}

// Whatever comes, changes and goes, the index has the pods that there are, under all that queries name.
func TestTheIndexFollowsThePods(t *testing.T) {
	now := time.Now()
	x, err := newPodIndex(nil, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	pod := func(name, workload, canonical string) *cachedPod {
		return &cachedPod{
			name: name, of: unique.Make(kindred{namespace: "test", workload: workload, canonical: canonical}), created: now.Unix(), wired: true,
		}
	}
	has := func(when string, set aggregator.Meant, want ...string) {
		t.Helper()
		var got []string
		for _, p := range podsOf(x, set) {
			got = append(got, p.identity.Name+map[bool]string{true: " gone"}[!p.left.IsZero()])
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: of %+v got %q, want %q", when, set, got, want)
		}
	}
	a, b := pod("a", "w", "c"), pod("b", "w", "c")
	x.add(a)
	x.add(b)
	has("at first", aggregator.Meant{Workload: "w"}, "a", "b")
	has("at first", aggregator.Meant{CanonicalService: "c"}, "a", "b")
	labelled := pod("b", "w", "c2")
	x.replace(b, labelled)
	has("b has another label", aggregator.Meant{CanonicalService: "c2"}, "a", "b") // of the same workload
	moved := pod("a", "v", "c")
	x.replace(a, moved)
	has("a is of another workload", aggregator.Meant{Namespace: "test", Workload: "v"}, "a")
	has("a is of another workload", aggregator.Meant{Workload: "w"}, "b")
	has("a is of another workload", aggregator.Meant{CanonicalService: "c2"}, "b")
	last := pod("a", "w", "c") // as its deletion tells it
	x.forget(last)
	has("a is gone", aggregator.Meant{Workload: "v"}, "a gone")
	has("a is gone", aggregator.Meant{CanonicalService: "c"}, "a gone")
	x.add(pod("a", "w", "c"))
	x.forget(pod("a", "w", "c"))
	has("its name was used again", aggregator.Meant{Namespace: "test"}, "a gone", "b")
	has("its name was used again", aggregator.Meant{Workload: "v"})
	x.forget(pod("unknown", "w", "c"))
	x.forget(labelled)
	now = now.Add(goneFor + time.Second)
	other := pod("z", "z", "z")
	x.add(other)
	x.forget(other)
	has("an hour later", aggregator.Meant{}, "z gone")
	if len(x.workloads) != 1 || len(x.byName) != 1 || len(x.byNamespace) != 1 || len(x.byService) != 1 || len(x.gone) != 1 {
		t.Errorf("%v, %v, %v, %v, %v are left", x.workloads, x.byName, x.byNamespace, x.byService, x.gone)
	}
}

// pagedPods is an API server of before streamed lists.
type pagedPods struct {
	podList
	mu      sync.Mutex
	asked   []string // limits, versions and fields of lists
	watches []string // fields of watches
	streams []string // and of those that begin with all there is
	expires bool     // the second page has expired once
}

func (l *pagedPods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if l.refuses(w, r) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusGone)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonExpired, Code: http.StatusGone})
		return
	}
	l.podList.ServeHTTP(w, r)
}

// refuses notes what is asked for, and says whether it has expired.
func (l *pagedPods) refuses(w http.ResponseWriter, r *http.Request) bool {
	q := r.URL.Query()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case q.Get("sendInitialEvents") != "":
		l.streams = append(l.streams, q.Get("fieldSelector"))
	case q.Get("watch") != "":
		l.watches = append(l.watches, q.Get("fieldSelector"))
	default:
		l.asked = append(l.asked, "limit "+q.Get("limit")+", version "+q.Get("resourceVersion")+", "+q.Get("fieldSelector"))
		if q.Get("continue") != "" && l.expires {
			l.expires = false
			return true
		}
	}
	return false
}

// Where the API server does not stream them pods are read in pages, of those that have not ended, as they are now.
func TestPodsAreReadInPages(t *testing.T) {
	for _, expires := range []bool{false, true} {
		api := &pagedPods{podList: podList{2*podPage + 1}, expires: expires}
		server := httptest.NewServer(api)
		client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
		if err != nil {
			t.Fatal(err)
		}
		x, err := newPodIndex(client, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { x.run(ctx); close(done) }()
		eventually(t, func() bool { return x.synced() == nil }, func() string { return "not synced" })
		if n := len(podsOf(x)); n != api.n {
			t.Errorf("%d pods are known, want %d", n, api.n)
		}
		const living = "status.phase!=Failed,status.phase!=Succeeded"
		page := "limit 500, version , " + living
		want := []string{page, page, page}
		if expires {
			want = append(want, page, page)
		}
		eventually(t, func() bool { return x.fresh.age() == 0 }, func() string { return "no watch is open" })
		api.mu.Lock()
		if got := [][]string{api.streams, api.watches}; !reflect.DeepEqual(got, [][]string{{living}, {living}}) {
			t.Errorf("watched %q, want pods that have not ended", got)
		}
		if !reflect.DeepEqual(api.asked, want) {
			t.Errorf("asked for %q, want %q", api.asked, want)
		}
		api.mu.Unlock()
		cancel()
		server.CloseClientConnections()
		<-done
		server.Close()
	}
}
