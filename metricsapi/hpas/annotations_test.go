package hpas

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/aggregator"
)

func TestReadAnnotations(t *testing.T) {
	const legacy = "metric-config.external.prometheus-query.prometheus/"
	tests := map[string]struct {
		annotations map[string]string
		legacy      map[string]string
		queries     map[string]string
		foreign     map[string]bool
		surge       Surge
		problems    []string // REASON part of the message
	}{
		"the legacy form names its queries": {
			annotations: map[string]string{legacy + "rps": "sum(x)", legacy + "p95": "y"},
			legacy:      map[string]string{"rps": "sum(x)", "p95": "y"},
		},
		"the new form has one query a metric": {
			annotations: map[string]string{"metric-config.external.my-rps.prometheus/query": "sum(x)"},
			queries:     map[string]string{"my-rps": "sum(x)"},
		},
		"an interval is taken without a word": {
			annotations: map[string]string{legacy + "interval": "30s", "metric-config.external.my-rps.prometheus/interval": "1m"},
		},
		"an interval that is no duration": {
			annotations: map[string]string{legacy + "interval": "30"},
			problems:    []string{`BadAnnotation "30" is not a duration`},
		},
		"a Prometheus server is never asked": {
			annotations: map[string]string{legacy + "prometheus-server": "http://evil", legacy + "prometheus-server-alias": "x"},
			problems:    []string{"IgnoredAnnotation prometheus-server has no effect", "IgnoredAnnotation prometheus-server-alias has no effect"},
		},
		"other collectors are ignored without noise": {
			annotations: map[string]string{"metric-config.pods.rps.json-path/json-key": "$.x", "metric-config.external.sqs.zmon/check-id": "1"},
			foreign:     map[string]bool{"sqs": true},
		},
		"three parts on dots": {
			annotations: map[string]string{"metric-config.external.prometheus-query/x": "y"},
			problems:    []string{"BadAnnotation it has 3 parts before the slash where four are needed"},
		},
		"a metric name with a dot": {
			annotations: map[string]string{"metric-config.external.my.rps.prometheus/query": "y"},
			problems:    []string{"BadAnnotation it has 5 parts"},
		},
		"no slash": {
			annotations: map[string]string{"metric-config.external.prometheus-query.prometheus": "y"},
			problems:    []string{"BadAnnotation exactly one slash"},
		},
		"two slashes": {
			annotations: map[string]string{legacy + "a/b": "y"},
			problems:    []string{"BadAnnotation exactly one slash"},
		},
		"an empty part": {
			annotations: map[string]string{"metric-config.external..prometheus/query": "y", legacy: "y"},
			problems:    []string{"BadAnnotation a part is empty", "BadAnnotation a part is empty"},
		},
		"a kind that there is not": {
			annotations: map[string]string{"metric-config.External.rps.prometheus/query": "y"},
			problems:    []string{"BadAnnotation serves kind external, not External"},
		},
		"an unknown key of the new form": {
			annotations: map[string]string{"metric-config.external.my-rps.prometheus/qurey": "y"},
			problems:    []string{"BadAnnotation the key qurey is not known"},
		},
		"an empty query": {
			annotations: map[string]string{legacy + "rps": " \n"},
			problems:    []string{"BadAnnotation is empty"},
		},
		"Object metrics are told of with the spec": {annotations: map[string]string{"metric-config.object.rps.prometheus/query": "y"}},
		"surge settings": {
			annotations: map[string]string{"meshpulse.io/surge-window": "20s", "meshpulse.io/surge-ratio": "2", "meshpulse.io/surge-action": "observe"},
			surge:       Surge{Asked: true, Config: aggregator.SurgeConfig{Window: 20 * time.Second, Ratio: 2}, Action: SurgeObserve},
		},
		"an action alone asks for the defaults": {
			annotations: map[string]string{"meshpulse.io/surge-action": "scale"},
			surge:       Surge{Asked: true, Action: SurgeScale},
		},
		"an action that is off asks for nothing": {
			annotations: map[string]string{"meshpulse.io/surge-action": "off"},
			surge:       Surge{Action: SurgeOff},
		},
		"a surge window can be off": {
			annotations: map[string]string{"meshpulse.io/surge-window": "off"},
			surge:       Surge{Off: true},
		},
		"surge settings that cannot be read": {
			annotations: map[string]string{"meshpulse.io/surge-window": "-1s", "meshpulse.io/surge-ratio": "1", "meshpulse.io/surge-action": "Scale"},
			problems:    []string{"BadAnnotation off, observe or scale", "BadAnnotation a number above 1", "BadAnnotation a duration from 1s to 30s such as 10s"},
		},
		"a surge window that is no surge's": {
			annotations: map[string]string{"meshpulse.io/surge-window": "5m"},
			problems:    []string{`BadAnnotation meshpulse.io/surge-window: "5m" is not a duration from 1s to 30s`},
		},
		"a ratio that is no number": {
			annotations: map[string]string{"meshpulse.io/surge-ratio": "NaN"},
			problems:    []string{"BadAnnotation a number above 1"},
		},
		"a ratio of 0 is not the default": {
			annotations: map[string]string{"meshpulse.io/surge-ratio": "0", "meshpulse.io/surge-window": "0s"},
			problems:    []string{"BadAnnotation a number above 1", "BadAnnotation a duration from 1s to 30s"},
		},
		"who may read is said by the namespace that is read": {
			annotations: map[string]string{"meshpulse.io/readable-by": "*"},
			problems:    []string{"BadAnnotation has no effect on an HPA"},
		},
		"blocks of YAML, which end with a line's end": {
			annotations: map[string]string{
				legacy + "rps": "sum(x)\n", legacy + "interval": "30s\n",
				"meshpulse.io/surge-window": "20s\n", "meshpulse.io/surge-ratio": " 2\n", "meshpulse.io/surge-action": "scale\n",
			},
			legacy: map[string]string{"rps": "sum(x)"},
			surge:  Surge{Asked: true, Config: aggregator.SurgeConfig{Window: 20 * time.Second, Ratio: 2}, Action: SurgeScale},
		},
		"a surge window that is off, in a block": {
			annotations: map[string]string{"meshpulse.io/surge-window": "off\n"},
			surge:       Surge{Off: true},
		},
		"an unknown key of ours": {
			annotations: map[string]string{"meshpulse.io/surge": "on"},
			problems:    []string{"BadAnnotation is not known"},
		},
		"annotations of others": {
			annotations: map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{}", "metric-configuration": "x"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := readAnnotations(tc.annotations)
			wantMap(t, "legacy queries", got.legacy, tc.legacy)
			wantMap(t, "queries", got.queries, tc.queries)
			wantMap(t, "foreign metrics", got.foreign, tc.foreign)
			if d := cmp.Diff(tc.surge, got.surge, cmp.AllowUnexported(Surge{})); d != "" {
				t.Errorf("surge (-want +got):\n%s", d)
			}
			wantProblems(t, got.problems, tc.problems)
		})
	}
}

func wantMap[V any](t *testing.T, what string, got, want map[string]V) {
	t.Helper()
	if len(got) == 0 && len(want) == 0 {
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// wantProblems compares problems, in order, with "REASON part of the message".
func wantProblems(t *testing.T, got []Problem, want []string) {
	t.Helper()
	// Queries of tests are short: most name no reporter. What is said of that has tests of its own.
	got = slices.DeleteFunc(slices.Clone(got), func(p Problem) bool { return p.Reason == ReasonCallersWord })
	if len(got) != len(want) {
		t.Fatalf("got %d problems, want %d: %+v", len(got), len(want), got)
	}
	for i, w := range want {
		reason, part, _ := strings.Cut(w, " ")
		if got[i].Reason != reason || !strings.Contains(got[i].Message, part) {
			t.Errorf("problem %d is %+v, want %s", i, got[i], w)
		}
	}
}

func FuzzReadAnnotations(f *testing.F) {
	f.Add("metric-config.external.prometheus-query.prometheus/rps", "sum(x)")
	f.Add("metric-config.object.a.prometheus/per-replica", "true")
	f.Add("metric-config.external.a.b.c/d/e", "")
	f.Add("meshpulse.io/surge-ratio", "1e999")
	f.Fuzz(func(t *testing.T, key, value string) {
		got := readAnnotations(map[string]string{key: value})
		if ours := strings.HasPrefix(key, annotationPrefix) || strings.HasPrefix(key, ownPrefix); !ours && len(got.problems) > 0 {
			t.Errorf("a problem with somebody else's key: %+v", got.problems)
		}
		if n := len(got.legacy) + len(got.queries) + len(got.foreign) + len(got.problems); n > 1 {
			t.Errorf("one annotation says %d things: %+v", n, got)
		}
		for _, p := range got.problems {
			if p.Reason == "" || !strings.Contains(p.Message, key) {
				t.Errorf("problem does not name the key %q: %+v", key, p)
			}
		}
	})
}
