package pages

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/net/html"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// othersText is an explanation all of whose texts are somebody else's.
func othersText(s string) explain.Explanation {
	now, value, proven := time.Unix(1000, 0), 1.0, false
	e := explain.Explanation{
		ObjectMeta: metav1.ObjectMeta{Namespace: s, Name: s}, At: now, Now: now, Target: s, MaxReplicas: 3,
		Events: []hpas.Problem{{Reason: s, Message: s}, {Reason: hpas.ReasonSharedTarget, Message: s + ". " + s}},
		Metrics: []explain.Metric{
			{
				Name: s, Selector: s, Expression: s, Target: s, TargetType: s, Value: s, Reason: s, Seen: s, Displayed: s, Rule: explain.RuleHeld,
				Pods:  []explain.Pod{{Namespace: s, Name: s, Workload: s, State: explain.StateSilent, LastFlush: &now, Value: s, Why: s, Proven: &proven}},
				Surge: &explain.Surge{Active: true, Action: s, Rate: 1, Baseline: 1}, Asks: &explain.Asks{Replicas: 1},
				History: []explain.Point{{At: now.Add(-time.Minute), Answered: &value, Rule: explain.Rule(s)}, {At: now, Answered: &value, Rule: explain.RuleHeld}},
			},
			{Name: s, Error: s, Rule: explain.RuleRefused, Pods: []explain.Pod{{Namespace: s, Name: s, State: explain.State(s)}}},
		},
		Decision: &explain.Decision{Why: s, Bound: s},
	}
	e.Diagnose()
	return e
}

// hostileSource gives the same, whatever is asked for.
type hostileSource struct{ e explain.Explanation }

func (s hostileSource) List(context.Context) (explain.List, error) {
	return explain.List{Items: []explain.Explanation{s.e}}, nil
}

func (s hostileSource) One(context.Context, string, string, time.Duration) (explain.Explanation, error) {
	return s.e, nil
}

// FuzzNothingOfOthersReachesAPage: whatever text others choose, a page has the elements and
// attributes that it has with a plain one, links lead nowhere else, and no control character nor a
// mark that turns writing is in it.
func FuzzNothingOfOthersReachesAPage(f *testing.F) {
	for _, seed := range []string{
		"podinfo", "<script>alert(1)</script>", `"><img src=x onerror=alert(1)>`, "' onmouseover='x", "javascript:alert(1)", "\x1b]0;x\x07", "\u202e\u2066",
		"a\nRemedy: none", "\xff\xfe\x9b", "\u2028", "a. b: c", "../..", "//evil.example/", "</pre></section>", "{{.}}", "<!--", "]]>", "&lt;b&gt;",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := resource.ParseQuantity(s); s == "" || err == nil { // what is not said has no element, a number another axis
			return
		}
		for _, path := range []string{"", "hpas/shop/podinfo/"} {
			got, body := skeleton(t, path, s)
			for _, r := range body {
				if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' || r == unicode.ReplacementChar && !strings.ContainsRune(s, r)) {
					t.Fatalf("%q has %U of %q", path, r, s)
				}
			}
			if want, _ := skeleton(t, path, "x"); !slices.Equal(got, want) {
				t.Errorf("%q is another page with %q:\n%s\nwant\n%s", path, s, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	})
}

// skeleton are a page's elements with the names of their attributes.
func skeleton(t *testing.T, path, text string) (all []string, body string) {
	t.Helper()
	p := newPages(t, hostileSource{othersText(text)})
	body = get(p, path).Body.String()
	tree, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for node := range tree.Descendants() {
		switch node.Type {
		case html.CommentNode:
			t.Errorf("a comment: %q", node.Data)
		case html.ElementNode:
			element := node.Data
			for _, a := range node.Attr {
				element += " " + a.Key
				if (a.Key == "href" || a.Key == "src") && !strings.HasPrefix(a.Val, p.base()) {
					t.Errorf("<%s> leads to %q", node.Data, a.Val)
				}
				if a.Key == "id" && strings.ContainsAny(a.Val, "\n\t") {
					t.Errorf("<%s> has an id of several words: %q", node.Data, a.Val)
				}
			}
			all = append(all, element)
		}
	}
	return all, body
}
