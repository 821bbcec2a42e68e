package cluster

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Whatever comes, changes and goes, the index has the pods that there are, under all that queries
// name.
func TestTheIndexFollowsThePods(t *testing.T) {
	now := time.Now()
	x, err := NewPods(nil, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	pod := func(name, workload, canonical string) *cachedPod {
		return &cachedPod{
			name: name, of: unique.Make(kindred{namespace: "test", workload: workload, canonical: canonical}), created: secondsOf(now.Unix()), wired: true,
		}
	}
	has := func(when string, set aggregator.Meant, want ...string) {
		t.Helper()
		var got []string
		for _, p := range podsOf(x, set) {
			got = append(got, p.Identity.Name+map[bool]string{true: " gone"}[!p.Left.IsZero()])
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
	now = now.Add(GoneFor + time.Second)
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

// Where the API server does not stream them pods are read in pages, of those that have not ended,
// as they are now.
func TestPodsAreReadInPages(t *testing.T) {
	for _, expires := range []bool{false, true} {
		api := &pagedPods{podList: podList{2*podPage + 1}, expires: expires}
		server := httptest.NewServer(api)
		client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
		if err != nil {
			t.Fatal(err)
		}
		x, err := NewPods(client, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { x.Run(ctx); close(done) }()
		eventually(t, func() bool { return x.Synced() == nil }, func() string { return "not synced" })
		if n := len(podsOf(x)); n != api.n {
			t.Errorf("%d pods are known, want %d", n, api.n)
		}
		const living = "status.phase!=Failed,status.phase!=Succeeded"
		page := "limit 500, version , " + living
		want := []string{page, page, page}
		if expires {
			want = append(want, page, page)
		}
		eventually(t, func() bool { return x.fresh.Age() == 0 }, func() string { return "no watch is open" })
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
