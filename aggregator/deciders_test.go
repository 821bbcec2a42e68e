package aggregator

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// clusterOf is what a cluster knows: these pods, by namespace and name.
type clusterOf map[string]Pod

func (c clusterOf) Known(namespace, name string) (Pod, time.Time, bool) {
	p, ok := c[namespace+"/"+name]
	return p, time.UnixMilli(0), ok
}

func (clusterOf) Fresh() bool  { return true }
func (clusterOf) InStep() bool { return true }

func (clusterOf) Holder(string, string, netip.Addr) (own bool, other string) { return false, "" }

func (clusterOf) Changes() uint64 { return 0 }

func (clusterOf) Denies(string, string) bool { return false }

func (clusterOf) ServiceAccount(string, string) (string, time.Time) { return "", time.Time{} }

func (c clusterOf) Exists(namespace, name string) (exists bool, left time.Time) {
	_, exists = c[namespace+"/"+name]
	return exists, time.Time{}
}

// flushEvery has a pod report a workload's requests at an interval, until a time.
func flushEvery(t *testing.T, s *Store, p Pod, every, until time.Duration) {
	t.Helper()
	st := s.Connect(p)
	for at := every; at <= until; at += every {
		arrival := s.started.Add(at)
		b := &Batch{Timestamp: arrival.UnixMilli(), Samples: []Sample{{Key: 1, Timestamp: arrival.UnixMilli(), Kind: Counter, Value: at.Seconds()}}}
		if err := st.Commit(arrival, b, podinfoRequests{}); err != nil {
			t.Fatal(err)
		}
	}
}

type podinfoRequests struct{}

func (podinfoRequests) Describe(int) (string, []Label, error) {
	return "istio_requests_total", []Label{{"reporter", "destination"}, {"destination_workload", "podinfo"}, {"destination_workload_namespace", "test"}}, nil
}

// Who sends a workload's labels is not one of its pods: with whatever interval and silence, nobody
// waits for him.
func TestOnlyPodsThatAreMeantDecide(t *testing.T) {
	const until = 5 * time.Minute
	podinfo := func(name string) Pod { return Pod{Namespace: "test", Name: name, Workload: "podinfo"} }
	for name, tc := range map[string]struct {
		others  []Pod
		every   time.Duration
		cluster bool
		want    Coverage // its counts, flush, and how old the watermark is, in Covered
	}{
		"of another namespace, with the labels": {
			others: []Pod{{Namespace: "evil", Name: "x", Workload: "x", FlushInterval: time.Hour}}, every: 290 * time.Second,
			want: Coverage{Reporting: 10, Flush: 5 * time.Second},
		},
		"under the workload's name, unknown to the cluster": {
			others: []Pod{podinfo("x"), podinfo("y")}, every: 35 * time.Second, cluster: true,
			want: Coverage{Reporting: 10, Flush: 5 * time.Second},
		},
		"one of the pods flushes seldom": {
			others: []Pod{podinfo("slow")}, every: 40 * time.Second,
			want: Coverage{Reporting: 11, Flush: 5 * time.Second},
		},
		"two of twelve do": {
			others: []Pod{podinfo("slow"), podinfo("slow-too")}, every: 40 * time.Second,
			want: Coverage{Reporting: 12, Flush: 40 * time.Second, Covered: 20 * time.Second},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			cluster := clusterOf{}
			for i := range 10 {
				p := podinfo(fmt.Sprint("pod-", i))
				cluster["test/"+p.Name] = p
				flushEvery(t, s, p, 5*time.Second, until)
			}
			if tc.cluster {
				s.SetPods(cluster)
			}
			for _, p := range tc.others {
				flushEvery(t, s, p, tc.every, until)
			}
			q, err := s.Register(`sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`)
			if err != nil {
				t.Fatal(err)
			}
			a, err := q.Eval(t.Context(), s.started.Add(until))
			if err != nil {
				t.Fatal(err)
			}
			got := Coverage{Reporting: a.Reporting, Silent: a.Silent, Flush: a.Flush, Covered: s.Time(s.started.Add(until)).Sub(a.Watermark)}
			if got.Reporting != tc.want.Reporting || got.Silent != 0 || got.Flush != tc.want.Flush || got.Covered != tc.want.Covered {
				t.Errorf("%d reporting, %d silent, flush %s, watermark %s old, want %d, 0, %s, %s", got.Reporting, got.Silent, got.Flush, got.Covered,
					tc.want.Reporting, tc.want.Flush, tc.want.Covered)
			}
		})
	}
}

// Who calls the author's namespace is seen by it, and so is that he does not report any more: a
// load that nobody knows is no load that is gone.
func TestASilentCallerIsSilentToThoseWhomHeCalls(t *testing.T) {
	called := Pod{Namespace: "test", Name: "pod-0", Workload: "podinfo"}
	caller := Pod{Namespace: "shop", Name: "front-0", Workload: "front"}
	for name, reading := range map[string]Reading{"everything is read": nil, "its own is": reads{}} {
		for _, known := range []bool{false, true} {
			s, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			if reading != nil {
				s.SetReading(reading)
			}
			if known {
				s.SetPods(clusterOf{"test/pod-0": called, "shop/front-0": caller})
			}
			flushEvery(t, s, called, 5*time.Second, 3*time.Minute)
			st := s.Connect(caller)
			for at := 5 * time.Second; at <= 150*time.Second; at += 5 * time.Second {
				b := counters(s.started.Add(at), 1, 2)
				if err := st.Commit(s.started.Add(at), b, callsOfPodinfo{}); err != nil {
					t.Fatal(err)
				}
			}
			q, err := s.RegisterFor("test", `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="source"}[1m]))`)
			if err != nil {
				t.Fatal(err)
			}
			a, err := q.Eval(t.Context(), s.started.Add(3*time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if a.Matched != 1 || a.Silent != 1 || a.Reporting != 1 {
				t.Errorf("%s, the cluster's pods known: %v: %d series, %d silent, %d reporting, want 1 of each", name, known, a.Matched, a.Silent, a.Reporting)
			}
		}
	}
}

type callsOfPodinfo struct{}

func (callsOfPodinfo) Describe(int) (string, []Label, error) {
	return "istio_requests_total", []Label{{"reporter", "source"}, {"destination_workload", "podinfo"}, {"destination_workload_namespace", "test"}}, nil
}

// New names, one every five seconds, with one message each: nothing of the pods that are known
// changes.
func TestNewNamesHoldNothing(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	p := Pod{Namespace: "test", Name: "pod", Workload: "podinfo"}
	s.SetPods(clusterOf{"test/pod": p})
	flushEvery(t, s, p, 5*time.Second, 4*time.Minute)
	for i := range 40 {
		forged := Pod{Namespace: "test", Name: fmt.Sprint("forged-", i), Workload: "podinfo", FlushInterval: time.Hour}
		st, at := s.Connect(forged), s.started.Add(time.Duration(i)*5*time.Second)
		if err := st.Commit(at, counters(at, 1, 2), podinfoRequests{}); err != nil {
			t.Fatal(err)
		}
	}
	q, err := s.Query(`sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`)
	if err != nil {
		t.Fatal(err)
	}
	a, err := q.Eval(t.Context(), s.started.Add(4*time.Minute))
	if err != nil || a.Reporting != 1 || a.Silent != 0 || len(a.Partial) != 0 || a.Flush != 5*time.Second {
		t.Errorf("coverage %+v, error %v, want that of the one pod that is known", a.Coverage, err)
	}
}
