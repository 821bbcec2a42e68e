package pages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// source has what a test gives it.
type source struct {
	mu    sync.Mutex
	items []explain.Explanation
	err   error
	asked []string
}

func (s *source) List(context.Context) (explain.List, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, "all")
	return explain.List{Items: s.items}, s.err
}

func (s *source) One(_ context.Context, namespace, name string, ago time.Duration) (explain.Explanation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, fmt.Sprintf("%s/%s %s", namespace, name, ago))
	for _, e := range s.items {
		if e.Namespace == namespace && e.Name == name && s.err == nil {
			return e, nil
		}
	}
	return explain.Explanation{}, errors.Join(s.err, errors.New("not found"))
}

func (s *source) set(err error, items ...explain.Explanation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items, s.err = items, err
}

func (s *source) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

// told is an HPA of which a value is answered by a rule.
func told(name, value string, rule explain.Rule) explain.Explanation {
	now := time.Now()
	e := explain.Explanation{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, At: now, Now: now, Target: "Deployment/" + name, MinReplicas: 1, MaxReplicas: 5,
		Metrics: []explain.Metric{{Name: "rps", TargetType: "AverageValue", Target: "10", Value: value, Rule: rule, Displayed: value + "/10 (avg)", Reporting: 1, Expected: 1}},
	}
	if rule == explain.RuleHeld {
		e.Metrics[0].Pods = []explain.Pod{{Namespace: "shop", Name: name + "-b", State: explain.StateSilent, LastFlush: &now}}
	}
	e.Diagnose()
	return e
}

func newPages(t testing.TB, s Source) *Pages {
	t.Helper()
	p, err := New(Config{Source: s, Address: "127.0.0.1:4711", Scope: "namespace shop"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// get asks for a path below the one with the token.
func get(p *Pages, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, p.URL()+path, nil))
	return w
}

func TestOnlyWhoHasTheAddressIsServed(t *testing.T) {
	s := &source{items: []explain.Explanation{told("podinfo", "30", explain.RuleSeen)}}
	p := newPages(t, s)
	other := newPages(t, s)
	if p.base() == other.base() || len(p.base()) < 24 {
		t.Errorf("an address that can be guessed: %s, %s", p.base(), other.base())
	}
	for name, test := range map[string]struct {
		method, host, path string
		code               int
	}{
		"as it is printed":           {"GET", "127.0.0.1:4711", p.base(), 200},
		"by the machine's own name":  {"GET", "localhost:4711", p.base(), 200},
		"one HPA":                    {"GET", "127.0.0.1:4711", p.base() + "hpas/shop/podinfo/", 200},
		"the script":                 {"GET", "127.0.0.1:4711", p.base() + "live.js", 200},
		"no token":                   {"GET", "127.0.0.1:4711", "/", 403},
		"no token, the script":       {"GET", "127.0.0.1:4711", "/live.js", 403},
		"a part of it":               {"GET", "127.0.0.1:4711", p.base()[:10] + "/", 403},
		"another's token":            {"GET", "127.0.0.1:4711", other.base(), 403},
		"a name that is led here":    {"GET", "evil.example:4711", p.base(), 421},
		"another port":               {"GET", "127.0.0.1:80", p.base(), 421},
		"no host":                    {"GET", "", p.base(), 421},
		"writing":                    {"POST", "127.0.0.1:4711", p.base(), 405},
		"what there is not":          {"GET", "127.0.0.1:4711", p.base() + "secrets", 404},
		"a file that is not for all": {"GET", "127.0.0.1:4711", p.base() + "all.html", 404},
		"a name that is a path":      {"GET", "127.0.0.1:4711", p.base() + "hpas/shop/..%2f..%2fpods/", 404},
		"a name that cannot be":      {"GET", "127.0.0.1:4711", p.base() + "hpas/shop/A_B/events", 404},
	} {
		r := httptest.NewRequest(test.method, "http://127.0.0.1:4711"+test.path, nil)
		r.Host = test.host
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Code != test.code {
			t.Errorf("%s: got %d, want %d: %s", name, w.Code, test.code, w.Body)
		}
		for header, want := range map[string]string{
			"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
			"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
		} {
			if got := w.Header().Get(header); got != want {
				t.Errorf("%s: %s is %q", name, header, got)
			}
		}
		if strings.Contains(w.Header().Get("Location"), p.token) || test.code == 403 && strings.Contains(w.Body.String(), p.token) {
			t.Errorf("%s: tells the token", name)
		}
	}
}

// The policy forbids what is not served here, and the pages need nothing of that: no other host, no
// script or style within the HTML.
func TestPagesNeedNobodyElse(t *testing.T) {
	if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") {
		t.Errorf("the policy lets in too much: %s", policy)
	}
	outside := regexp.MustCompile(`(?:https?:)?//[a-z0-9.]+|<style|\sstyle=|\son[a-z]+=|<script>|@import`)
	err := fs.WalkDir(files, "files", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(files, path)
		for _, found := range outside.FindAllString(string(b), -1) {
			if found != "http://www.w3.org" { // the name of what SVG is
				t.Errorf("%s has %q", path, found)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Without JavaScript the page is whole as it comes, and is loaded anew.
func TestAllHPAsAreShownTheWorstFirst(t *testing.T) {
	s := &source{items: []explain.Explanation{told("well", "30", explain.RuleSeen), told("ill", "20", explain.RuleHeld)}}
	p := newPages(t, s)
	w := get(p, "")
	body := w.Body.String()
	if ct := w.Header().Get("Content-Type"); ct != "text/html; charset=utf-8" {
		t.Errorf("Content-Type: %s", ct)
	}
	for _, want := range []string{
		"2 HPAs of namespace shop, 1 well, 1 held", ">state</th>", `href="` + p.base() + `hpas/shop/ill/">ill</a>`, `<td class="state">held</td>`, "ill-b",
		`href="` + p.base() + `hpas/shop/well/">well</a>`, `<td class="state">ok</td>`,
	} {
		_, after, found := strings.Cut(body, want)
		if !found {
			t.Fatalf("no %q, or not there, in\n%s", want, w.Body)
		}
		body = after
	}
	if !strings.Contains(w.Body.String(), `<noscript><meta http-equiv="refresh"`) {
		t.Error("it is not loaded anew without JavaScript")
	}
	one := get(p, "hpas/shop/ill/").Body.String()
	for _, want := range []string{"Cause: 1 sidecar silent (ill-b", "Remedy: kubectl -n shop logs ill-b", "<pre>shop/ill: HELD"} {
		if !strings.Contains(one, want) {
			t.Errorf("no %q in\n%s", want, one)
		}
	}
}

func TestWhatTheSourceRefusesIsSaid(t *testing.T) {
	s := &source{err: errors.New("forbidden: \x1b[2J<b>meshpulse:reader</b>")}
	p := newPages(t, s)
	for _, path := range []string{"", "hpas/shop/podinfo/"} {
		body := get(p, path).Body.String()
		if !strings.Contains(body, `forbidden: \u001b[2J&lt;b&gt;meshpulse:reader`) || !strings.Contains(body, `role="alert"`) {
			t.Errorf("%q shows\n%s", path, body)
		}
	}
}
