package envoystats

import (
	"testing"

	"google.golang.org/protobuf/types/known/structpb"
)

func TestANodeTellsWhatItsSidecarSends(t *testing.T) {
	regexes := func(r string) map[string]any {
		return map[string]any{"ANNOTATIONS": map[string]any{"sidecar.istio.io/statsInclusionRegexps": r}}
	}
	mesh := map[string]any{"proxyStatsMatcher": map[string]any{"inclusionRegexps": []any{".*rq_active"}, "inclusionSuffixes": []any{"upstream_rq_pending_active"}}}
	for name, tc := range map[string]struct {
		node map[string]any
		want [2]bool
	}{
		"nothing":              {map[string]any{}, [2]bool{}},
		"both":                 {regexes(`http\.inbound_.*\.downstream_rq_active,cluster\.outbound\|.*\.upstream_rq_pending_active`), [2]bool{true, true}},
		"one":                  {regexes(`http\.inbound_.*\.downstream_rq_active`), [2]bool{true, false}},
		"a pattern is of all":  {regexes(`downstream_rq_active`), [2]bool{}},
		"no pattern":           {regexes(`(,.*`), [2]bool{true, true}},
		"by prefix":            {map[string]any{"ANNOTATIONS": map[string]any{"sidecar.istio.io/statsInclusionPrefixes": "http.inbound"}}, [2]bool{true, false}},
		"of the mesh":          {map[string]any{"PROXY_CONFIG": mesh}, [2]bool{true, true}},
		"in place of the mesh": {map[string]any{"PROXY_CONFIG": mesh, "ANNOTATIONS": map[string]any{"sidecar.istio.io/statsInclusionRegexps": "x"}}, [2]bool{false, true}},
		"not text":             {map[string]any{"ANNOTATIONS": 5, "PROXY_CONFIG": []any{1}}, [2]bool{}},
	} {
		meta, err := structpb.NewStruct(tc.node)
		if err != nil {
			t.Fatal(err)
		}
		if active, pending := sends(meta.GetFields()); active != tc.want[0] || pending != tc.want[1] {
			t.Errorf("%s: got %t and %t, want %v", name, active, pending, tc.want)
		}
	}
}
