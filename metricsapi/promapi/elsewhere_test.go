package promapi

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// What is not known in full here is asked for elsewhere, with the parameters as they came, and
// answered as it is there.
func TestAQueryThatIsNotKnownInFullIsAnsweredElsewhere(t *testing.T) {
	m := newMesh(t)
	empty, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return m.now }
	whole := func(context.Context, string, time.Time) string { return "" }
	there := New(Options{Store: m.store, Now: now, Held: whole, Incomplete: whole})
	asked := 0
	here := New(Options{
		Store: empty, Now: now,
		Held: func(context.Context, string, time.Time) string { return "no sidecar" },
		Incomplete: func(_ context.Context, expr string, at time.Time) string {
			if strings.HasPrefix(expr, "vector") {
				return ""
			}
			return "no sidecar"
		},
		Elsewhere: func(ctx context.Context, path string, form url.Values, own Answer) Answer {
			asked++
			if own.Incomplete != "no sidecar" {
				t.Errorf("%s is incomplete here since %q", path, own.Incomplete)
			}
			return there.Here(ctx, path, form)
		},
	})
	query := url.Values{"query": {`count(istio_requests_total{reporter="source"})`}, "start": {"0"}, "end": {"1"}, "step": {"1s"}}
	for path, want := range map[string]string{
		"/api/v1/query?" + query.Encode():                          `,"2"]`,
		"/api/v1/query?" + query.Encode() + "&on_incomplete=error": `,"2"]`,
		"/api/v1/query_range?" + query.Encode():                    `"resultType":"matrix"`,
	} {
		before := asked
		w := httptest.NewRecorder()
		here.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) || w.Header().Get("Content-Type") != "application/json" || asked != before+1 {
			t.Errorf("%s gives %d: %s", path, w.Code, w.Body)
		}
	}
	before := asked
	for path, code := range map[string]int{
		"/api/v1/query?query=vector(1)":      http.StatusOK,         // all is known
		"/api/v1/query?query=sum(":           http.StatusBadRequest, // nobody else could read it
		"/api/v1/series?match[]=up":          http.StatusOK,         // a listing
		"/api/v1/query?query=up&time=no":     http.StatusBadRequest,
		"/api/v1/query?query=up&timeout=-1s": http.StatusBadRequest,
	} {
		w := httptest.NewRecorder()
		here.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != code || asked != before {
			t.Errorf("%s gives %d (want %d), asked %d times: %s", path, w.Code, code, asked-before, w.Body)
		}
	}
	if a := there.Here(t.Context(), "/federate", nil); a.Code != http.StatusBadRequest {
		t.Errorf("another path gives %d", a.Code)
	}
}
