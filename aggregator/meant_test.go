package aggregator

import (
	"fmt"
	"slices"
	"testing"
)

func TestAQueryMeansAtLeastThePodsThatItSelects(t *testing.T) {
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
		`x{reporter="waypoint",destination_workload="w1"}`:                                                    {{}},
		`x`: {{}},
		`x{destination_workload="w1"} / y{destination_workload="w1"}`:                                                          {{Workload: "w1"}},
		`x{destination_workload="w1"} / y{destination_canonical_service="c2"}`:                                                 {{Workload: "w1"}, {CanonicalService: "c2"}},
		`x{destination_workload="w1"} / y{destination_workload="w1",destination_workload_namespace="n0"}`:                      {{Workload: "w1"}},
		`x{destination_workload="w1"} / y`:                                                                                     {{}},
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
			if q.Selects(&p) && !slices.ContainsFunc(got, func(m Meant) bool { return m.holds(of) }) {
				t.Errorf("%s: selects %+v, which is in none of %+v", expr, p, got)
			}
		}
	}
}
