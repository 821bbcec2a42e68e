package main

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// contendFor takes turns with others at a lock until stop.
func contendFor(mu *sync.Mutex, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
			mu.Lock()
			runtime.Gosched()
			mu.Unlock()
		}
	}
}

func TestWaitsAreProfiledWhileTheyAreAskedFor(t *testing.T) {
	server := httptest.NewServer(profiles())
	defer server.Close()
	var mu sync.Mutex
	var running sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		running.Go(func() { contendFor(&mu, stop) })
	}
	for _, name := range []string{"mutex", "block"} {
		resp, err := http.Get(server.URL + "/debug/pprof/" + name + "?seconds=1")
		if err != nil {
			t.Fatal(err)
		}
		zipped, err := gzip.NewReader(resp.Body)
		if err != nil {
			t.Fatalf("%s: %s: %v", name, resp.Status, err)
		}
		b, err := io.ReadAll(zipped)
		if err != nil || !strings.Contains(string(b), "contendFor") {
			t.Errorf("%s: the lock that is waited for is not among %d bytes, error %v", name, len(b), err)
		}
		_ = resp.Body.Close()
	}
	close(stop)
	running.Wait()
	if n := runtime.SetMutexProfileFraction(-1); n != 0 {
		t.Errorf("waits for mutexes go on being recorded, one in %d", n)
	}
}
