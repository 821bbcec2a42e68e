package load

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
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
	g := Start(t.Context(), Options{Targets: targets, Profile: Steady(500, Endless), Header: http.Header{"X-Source-Workload": {"web"}}})
	for hits[1].Load() < 20 {
		time.Sleep(time.Millisecond)
	}
	g.Stop()
	sent := int(hits[0].Load() + hits[1].Load())
	if seen := g.All(); seen.Requests != sent || seen.Failed != 2 {
		t.Errorf("got %+v, the servers saw %d and answered two badly", seen, sent)
	}
	if d := hits[0].Load() - hits[1].Load(); d != 0 && d != 1 {
		t.Errorf("targets do not take turns: %d and %d requests", hits[0].Load(), hits[1].Load())
	}
}

func TestBetweenIsLeftOpenAndCutToTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Generator{options: Options{Begin: time.Now()}}
		for i := 1; i <= 20; i++ { // 1 to 20 ms, ending at 100 ms, 200 ms, …
			time.Sleep(100 * time.Millisecond)
			g.end(time.Now().Add(-time.Duration(i)*time.Millisecond), time.Duration(21-i), i == 20)
		}
		if want := (Seen{Requests: 20, Failed: 1, Rate: 10, Average: 10.5, P95: 19, Late: 20}); g.All() != want {
			t.Errorf("all: got %+v, want %+v", g.All(), want)
		}
		second := g.Between(g.options.Begin.Add(time.Second), time.Now())
		if want := (Seen{Requests: 10, Failed: 1, Rate: 10, Average: 15.5, P95: 20, Late: 10}); second != want {
			t.Errorf("the second second: got %+v, want %+v", second, want)
		}
	})
}

func TestRequestsDoNotWaitForAnswers(t *testing.T) {
	release := make(chan struct{})
	var started atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if started.Add(1) == 20 {
			close(release) // a closed loop would never get here
		}
		<-release
	}))
	t.Cleanup(server.Close)
	g := Start(t.Context(), Options{Targets: []string{server.Listener.Addr().String()}, Profile: Steady(100, 200*time.Millisecond)})
	g.Wait()
	if seen := g.All(); seen.Requests != 20 || seen.Failed != 0 {
		t.Errorf("got %+v, want 20 sent and answered", seen)
	}
}

// A loop that is held up makes up for it: what was due meanwhile is called at once, and none twice.
func TestLateCallsAreMadeLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		late := map[int]time.Duration{}
		var mu sync.Mutex
		time.Sleep(time.Second)
		Loop(t.Context(), begin, Steady(10, 2*time.Second), func(i int, due time.Time) {
			mu.Lock()
			defer mu.Unlock()
			late[i] = time.Since(due)
		})
		if len(late) != 20 || late[0] != 900*time.Millisecond || late[9] != 0 || late[19] != 0 {
			t.Errorf("calls by how late they were: %v", late)
		}
	})
}

func TestAnEndedLoopCallsNothingMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var calls atomic.Int64
		begin := time.Now()
		Loop(ctx, begin, Steady(2, Endless), func(int, time.Time) {
			time.Sleep(time.Minute)
			calls.Add(1)
		})
		if n := calls.Load(); n < 1 || n > 2 { // the second is due as the context ends
			t.Errorf("%d calls in a second at 2 a second", n)
		}
		if took := time.Since(begin); took < time.Minute {
			t.Errorf("it returned after %s, before its calls", took)
		}
	})
}

func TestWhatIsOldIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		short := &Generator{options: Options{Begin: time.Now(), Remember: time.Minute}}
		long := &Generator{options: Options{Begin: time.Now()}}
		for range 10_000 {
			time.Sleep(100 * time.Millisecond)
			short.end(time.Now(), 0, false)
			long.end(time.Now(), 0, false)
		}
		now := time.Now()
		if n := short.Between(now.Add(-time.Minute), now).Requests; n != 600 {
			t.Errorf("%d results of the last minute, want 600", n)
		}
		if len(short.results) > 2048 || len(long.results) != 10_000 {
			t.Errorf("%d results are kept for a minute, %d to the end", len(short.results), len(long.results))
		}
	})
}
