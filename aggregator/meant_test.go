package aggregator

import (
	"fmt"
	"slices"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

func TestAQueryMeansAtLeastThePodsThatItNames(t *testing.T) {
	var pods []Pod
	for i := range 3 * 3 * 3 {
		pods = append(pods, Pod{
			Namespace: fmt.Sprint("n", i%3), Workload: fmt.Sprint("w", i/3%3), CanonicalService: fmt.Sprint("c", i/9), App: fmt.Sprint("a", i%2), Name: fmt.Sprint("p", i),
		})
	}
	pods = append(pods, Pod{Name: "nameless"})
	for expr, want := range map[string][]Meant{
		`x{destination_workload="w1",reporter="destination"}`: {{Workload: "w1"}},
		`x{destination_workload="w1"}`:                        {{Workload: "w1"}},
		// With more than one label that names the pod.
		`x{destination_workload="w1",destination_workload_namespace="n1",destination_canonical_service="c1"}`: {{"n1", "w1", "c1"}},
		`x{destination_workload="w1",source_workload="w2",reporter="source"}`:                                 {{Workload: "w2"}},
		`x{destination_workload="w1",source_workload="w2"}`:                                                   {{Workload: "w1"}, {Workload: "w2"}},
		`x{destination_workload=~"w1|w2",destination_workload_namespace="n0"}`:                                {{Namespace: "n0", Workload: "w1"}, {Namespace: "n0", Workload: "w2"}},
		`x{destination_workload=~"w.*"}`:                                                                      {{}},
		`x{destination_workload=~"|w1"}`:                                                                      {{}},
		`x{destination_workload=""}`:                                                                          {{}},
		`x{destination_workload!="w1"}`:                                                                       {{}},
		`x{destination_workload="w1",destination_workload=~"w1|w2"}`:                                          {{Workload: "w1"}, {Workload: "w2"}},
		`x{destination_app="a1",namespace="n2"}`:                                                              {{Namespace: "n2"}},
		`x{namespace="n2",reporter="waypoint"}`:                                                               {{Namespace: "n2"}},
		`x{reporter="waypoint",destination_workload="w1"}`:                                                    {},
		`x`: {},
		`x{destination_workload="w1"} / y{destination_workload="w1"}`:                                                          {{Workload: "w1"}},
		`x{destination_workload="w1"} / y{destination_canonical_service="c2"}`:                                                 {{Workload: "w1"}, {CanonicalService: "c2"}},
		`x{destination_workload="w1"} / y{destination_workload="w1",destination_workload_namespace="n0"}`:                      {{Workload: "w1"}},
		`x{destination_workload="w1"} / y`:                                                                                     {{Workload: "w1"}},
		`x{destination_workload="w1"} + x{reporter="waypoint",destination_workload="w2"}`:                                      {{Workload: "w1"}},
		`x{destination_workload=~"w1|w2|w3|w4|w5",destination_canonical_service=~"c1|c2|c3|c4",namespace="n0"}`:                nil,
		`x{destination_workload="w1",destination_workload_namespace=~"n0|n1",namespace="n1",reporter=~"destination|waypoint"}`: nil,
		`vector(1)`: nil,
	} {
		q, err := mustStore(t).Query(expr)
		if err != nil {
			t.Fatal(err)
		}
		got := q.Meant()
		if want != nil && !slices.Equal(got, want) {
			t.Errorf("%s: got %+v, want %+v", expr, got, want)
		}
		for _, p := range pods {
			of := Meant{p.Namespace, p.Workload, p.CanonicalService}
			if q.Names(&p) && !slices.ContainsFunc(got, func(m Meant) bool { return m.holds(of) }) {
				t.Errorf("%s: names %+v, which is in none of %+v", expr, p, got)
			}
		}
	}
}

// A selector that names no pods could be any pod's series, but for what waypoints report. Which
// workloads have such series is told.
func TestWhatAQueryLeavesOpen(t *testing.T) {
	s := mustStore(t)
	for _, p := range []Pod{{Namespace: "n", Name: "a1", Workload: "a"}, {Namespace: "n", Name: "a2", Workload: "a"}, {Namespace: "n", Name: "b1", Workload: "b"}, {Namespace: "m", Name: "x"}, {Namespace: "m", Name: "y"}} {
		st := s.Connect(p)
		ok := st.Commit(s.Started(), &Batch{Timestamp: s.Started().UnixMilli(), Samples: []Sample{{Key: 1, Timestamp: s.Started().UnixMilli(), Kind: Counter, Value: 1}}},
			described{labels.FromStrings(model.MetricNameLabel, "istio_requests_total", "reporter", "source", "destination_workload", "w")})
		if ok != nil {
			t.Fatal(ok)
		}
		st.Close()
	}
	for expr, want := range map[string]struct {
		open    bool
		bearing []string
	}{
		`istio_requests_total`: {true, []string{"a1", "b1", "x", "y"}},
		`istio_requests_total{reporter="source",destination_workload="w"}`: {true, []string{"a1", "b1", "x", "y"}},
		`istio_requests_total{reporter="source",source_workload=~".*"}`:    {false, nil},
		`istio_requests_total{reporter="destination"}`:                     {true, nil},
		`istio_requests_total{reporter="waypoint"}`:                        {false, nil},
		`istio_requests_total{namespace="n"}`:                              {false, nil},
		`istio_requests_total{namespace="n"} + istio_requests_total`:       {true, []string{"a1", "b1", "x", "y"}},
		`vector(1)`: {false, nil},
	} {
		q, err := s.Query(expr)
		if err != nil {
			t.Fatal(err)
		}
		a, err := q.Eval(t.Context(), s.Started())
		if err != nil {
			t.Fatal(err)
		}
		var bearing []string
		for _, p := range a.Bearing {
			bearing = append(bearing, p.Name)
		}
		if slices.Sort(bearing); q.Open() != want.open || !slices.Equal(bearing, want.bearing) {
			t.Errorf("%s: open %v, had by %q, want %+v", expr, q.Open(), bearing, want)
		}
	}
}
