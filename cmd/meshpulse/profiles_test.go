package main

import (
	"bytes"
	"compress/gzip"
	"io"
	"log/slog"
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

// Profiles tell what is in memory, and cost CPU: that everybody who reaches the machine may ask for
// them is said.
func TestProfilesBeyondLoopbackAreWarnedOf(t *testing.T) {
	for address, warned := range map[string]bool{"127.0.0.1:0": false, "localhost:0": false, ":0": true, "0.0.0.0:0": true} {
		var log bytes.Buffer
		var o serveOptions
		f := o.flags(console{out: io.Discard, err: io.Discard})
		if err := f.Parse([]string{"--standalone", "--hpa-dir=" + t.TempDir(), "--ingest-address=127.0.0.1:0", "--secure-port=0", "--profiling-address=" + address}); err != nil {
			t.Fatal(err)
		}
		if err := o.complete(); err != nil {
			t.Fatal(err)
		}
		s, err := newServer(o, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		s.closeListeners()
		if got := strings.Contains(log.String(), "--profiling-address"); got != warned {
			t.Errorf("%s: warned %t, want %t: %s", address, got, warned, log.String())
		}
	}
}

func TestLoopbackIsOfThisMachineAlone(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.8.0.1": true, "::1": true, "localhost": true, "LOCALHOST": true,
		"": false, "0.0.0.0": false, "::": false, "10.0.0.7": false, "fd00::7": false, "node-1": false, "localhost.example.org": false,
	} {
		if got := loopback(host); got != want {
			t.Errorf("%q: got %t, want %t", host, got, want)
		}
	}
}
