package load

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestGeneratorSeesWhatTheServersSaw(t *testing.T) {
	var hits [2]atomic.Int64
	var targets []string
	for i := range hits {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Source-Workload") != "web" {
				t.Error("the header is missing")
			}
			if hits[i].Add(1) == 1 {
				w.WriteHeader(http.StatusInternalServerError)
			}
		}))
		t.Cleanup(s.Close)
		targets = append(targets, s.Listener.Addr().String())
	}
	g := Start(t.Context(), Options{Targets: targets, Rate: 500, Header: http.Header{"X-Source-Workload": {"web"}}})
	for hits[1].Load() < 20 {
		time.Sleep(time.Millisecond)
	}
	g.Stop()
	sent := int(hits[0].Load() + hits[1].Load())
	if got := g.Total(); got != sent {
		t.Errorf("total: got %d, the servers saw %d", got, sent)
	}
	if d := hits[0].Load() - hits[1].Load(); d != 0 && d != 1 {
		t.Errorf("targets do not take turns: %d and %d requests", hits[0].Load(), hits[1].Load())
	}
	if seen := g.Between(time.Time{}, time.Now()); seen.Failed != 2 {
		t.Errorf("failed: got %d, want 2", seen.Failed)
	}
}

func TestBetweenIsLeftOpenAndCutToTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Generator{started: time.Now()}
		for i := 1; i <= 20; i++ { // 1 to 20 ms, ending at 100 ms, 200 ms, …
			time.Sleep(100 * time.Millisecond)
			g.end(time.Now().Add(-time.Duration(i)*time.Millisecond), i == 20)
		}
		all := g.Between(g.started.Add(-time.Hour), time.Now())
		if want := (Seen{Requests: 20, Failed: 1, Rate: 10, Average: 10.5, P95: 19}); all != want {
			t.Errorf("all: got %+v, want %+v", all, want)
		}
		second := g.Between(g.started.Add(time.Second), time.Now())
		if want := (Seen{Requests: 10, Failed: 1, Rate: 10, Average: 15.5, P95: 20}); second != want {
			t.Errorf("the second second: got %+v, want %+v", second, want)
		}
	})
}
