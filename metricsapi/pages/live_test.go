package pages

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// reader is an open page: it takes events until it is closed.
type reader struct {
	header http.Header
	close  context.CancelFunc
	gone   chan struct{}

	mu   sync.Mutex
	part string
	got  []string // what was flushed and not read
}

func (r *reader) Header() http.Header { return r.header }
func (r *reader) WriteHeader(int)     {}
func (r *reader) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.part += string(b)
	return len(b), nil
}

func (r *reader) Flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got, r.part = append(r.got, r.part), ""
}

// open opens a page's stream of events.
func open(p *Pages, path string) *reader {
	ctx, cancel := context.WithCancel(context.Background())
	r := &reader{header: http.Header{}, close: cancel, gone: make(chan struct{})}
	go func() {
		defer close(r.gone)
		p.ServeHTTP(r, httptest.NewRequestWithContext(ctx, http.MethodGet, p.URL()+path+"events", nil))
	}()
	return r
}

// news are the changes that have come since they were read last.
func (r *reader) news(t *testing.T) (all []change) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for line := range strings.Lines(strings.Join(r.got, "")) {
		data, found := strings.CutPrefix(line, "data: ")
		if !found {
			continue
		}
		var c change
		if err := json.Unmarshal([]byte(data), &c); err != nil {
			t.Fatalf("%v: %s", err, data)
		}
		all = append(all, c)
	}
	r.got = nil
	return all
}

func TestTheSourceIsAskedOnceHoweverManyLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{items: []explain.Explanation{told("podinfo", "30", explain.RuleSeen)}}
		p := newPages(t, s)
		get(p, "")
		get(p, "")
		if n := s.count(); n != 1 {
			t.Errorf("two pages at once: asked %d times, want 1", n)
		}
		time.Sleep(time.Minute)
		if n := s.count(); n != 1 {
			t.Errorf("nobody looks: asked %d times, want 1", n)
		}
		readers := []*reader{open(p, ""), open(p, ""), open(p, "")}
		time.Sleep(19 * time.Second)
		synctest.Wait()
		if n := s.count(); n != 11 {
			t.Errorf("three pages for 19 s: asked %d times, want 10 more than 1", n)
		}
		readers[0].close()
		readers[1].close()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := s.count(); n != 12 {
			t.Errorf("one page is left: asked %d times, want 12", n)
		}
		readers[2].close()
		time.Sleep(time.Hour)
		if n := s.count(); n != 12 {
			t.Errorf("none is left: asked %d times, want 12", n)
		}
		again := open(p, "")
		if c := again.news(t); len(c) == 0 || s.count() != 13 {
			t.Errorf("one comes again: %+v, asked %d times", c, s.count())
		}
		again.close()
		<-again.gone
	})
}

// A source that takes long is asked less often.
func TestASlowSourceIsBusyForATwentiethOfTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{takes: time.Second}
		r := open(newPages(t, s), "")
		time.Sleep(99*time.Second + time.Millisecond) // at the start of each 20 s, and answered a second later
		synctest.Wait()
		if n := s.count(); n != 5 {
			t.Errorf("asked %d times in 99 s, want 5", n)
		}
		r.close()
		<-r.gone
	})
}

type slow struct {
	source
	takes time.Duration
}

func (s *slow) List(ctx context.Context) (explain.List, error) {
	time.Sleep(s.takes)
	return s.source.List(ctx)
}

func TestOnlyWhatChangesIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := told("a", "10", explain.RuleSeen), told("b", "20", explain.RuleSeen)
		s := &source{items: []explain.Explanation{a, b}}
		r := open(newPages(t, s), "")
		first := r.news(t)
		if len(first) != 1 || first[0].Order == nil || !slices.Equal(*first[0].Order, []string{"shop/a/0", "shop/b/0"}) || len(first[0].Pieces) != 4 {
			t.Fatalf("first: %+v", first)
		}
		if r.Header().Get("Content-Type") != "text/event-stream" {
			t.Errorf("Content-Type: %s", r.Header().Get("Content-Type"))
		}
		step := func(what string, order []string, pieces ...string) change {
			t.Helper()
			time.Sleep(2 * time.Second)
			news := r.news(t)
			if len(news) != 1 {
				t.Fatalf("%s: %d events, want 1", what, len(news))
			}
			if got := news[0]; (got.Order == nil) != (order == nil) || got.Order != nil && !slices.Equal(*got.Order, order) {
				t.Errorf("%s: order %v, want %v", what, got.Order, order)
			}
			for _, id := range pieces {
				if news[0].Pieces[id] == "" {
					t.Errorf("%s: no %s", what, id)
				}
			}
			if len(news[0].Pieces) != len(pieces) {
				t.Errorf("%s: %d pieces, want %v", what, len(news[0].Pieces), pieces)
			}
			return news[0]
		}
		step("nothing but the time", nil, statusID)
		s.set(nil, a, told("b", "21", explain.RuleSeen))
		step("a value", nil, statusID, "shop/b/0")
		s.set(nil, a, told("b", "21", explain.RuleHeld))
		step("the worst goes up", []string{"shop/b/0", "shop/a/0"}, statusID, "shop/b/0")
		s.set(errors.New("unreachable"))
		if c := step("an error", nil, statusID); !strings.Contains(c.Pieces[statusID], "unreachable") {
			t.Errorf("an error: %s", c.Pieces[statusID])
		}
		s.set(nil, a)
		step("it is back, and one has gone", []string{"shop/a/0"}, statusID)
		s.set(nil)
		step("none is left", []string{}, statusID)
		r.close()
		<-r.gone
	})
}
