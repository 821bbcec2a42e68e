package metricsapi

import (
	"context"
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A user that has all its places taken is refused with 429, told once, and nobody else is.
func TestAUserThatAsksForTooMuchIsRefusedAlone(t *testing.T) {
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, []byte("secret-a,dashboard,1\nsecret-b,controller,2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o, log := testOptions(t)
	o.TokenAuthFile, o.MaxReadsPerUser = tokens, 3
	server, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := &testServer{
		Server: server, t: t, cancel: cancel, done: make(chan error, 1), token: "secret-b",
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
	}
	go func() { s.done <- server.Run(ctx) }()
	defer s.stop()
	s.eventually("/readyz", http.StatusOK)
	const path = apiPath + "/namespaces/test/istio-requests-per-second"
	ask := func(token string) int {
		s.token = token
		code, _ := s.get(path)
		return code
	}
	status := func(token string) int {
		s.token = token
		code, _ := s.get("/debug/hpas")
		return code
	}
	answered := ask("secret-a") // no sidecar: an answer of a kind
	for range 3 {
		if refused := s.provider.readers.enter("dashboard"); refused != nil {
			t.Fatal(refused.message)
		}
	}
	for range 5 {
		if code := ask("secret-a"); code != http.StatusTooManyRequests {
			t.Errorf("the one that asks too much gets %d", code)
		}
		if code := ask("secret-b"); code != answered {
			t.Errorf("another one gets %d, want %d", code, answered)
		}
	}
	if code := status("secret-a"); code != http.StatusTooManyRequests {
		t.Errorf("all HPAs at once: %d", code)
	}
	if code := status("secret-b"); code != http.StatusOK {
		t.Errorf("all HPAs at once, another one gets %d", code)
	}
	s.provider.readers.leave("dashboard")
	if code := status("secret-a"); code != http.StatusOK {
		t.Errorf("all HPAs at once, with a place free again: %d", code)
	}
	if code := ask("secret-a"); code != answered {
		t.Errorf("with a place free again: %d, want %d", code, answered)
	}
	if n := log.count("asks for too much at once"); n != 1 {
		t.Errorf("told %d times", n)
	}
	s.token = "secret-b"
	if _, body := s.get("/metrics"); !strings.Contains(body, `meshpulse_metricsapi_answers_total{outcome="too_many"} 6`) {
		t.Error("/metrics does not count six refusals")
	}
}

func TestReadersAreConcurrentSafe(t *testing.T) {
	r := newReaders(4, discardLog())
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			for range 1000 {
				if r.enter("a") == nil {
					r.mu.Lock()
					if n := r.asking["a"]; n < 1 || n > 4 {
						t.Errorf("%d at once", n)
					}
					r.mu.Unlock()
					r.leave("a")
				}
			}
		})
	}
	all.Wait()
	if len(r.asking) != 0 {
		t.Errorf("left behind: %v", r.asking)
	}
}
