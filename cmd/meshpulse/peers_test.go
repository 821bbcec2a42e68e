package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/envoystats/fleet"
	"github.com/meshpulse/meshpulse/envoystats/replay"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
)

func TestWhatEndpointsTellOfReplicas(t *testing.T) {
	got := membersOf([]cluster.Replica{
		{Name: "a", Address: "10.0.0.1:15091", Zone: "z"}, {Name: "b", Ready: true}, {Name: "c", Leaving: true}, {Name: "d", Ready: true, Leaving: true},
	})
	want := []fleet.Member{
		{Name: "a", Address: "10.0.0.1:15091", Zone: "z", State: fleet.Joining}, {Name: "b", State: fleet.Active}, {Name: "c", State: fleet.Leaving}, {Name: "d", State: fleet.Leaving},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWrongFlagsOfReplicasAreTold(t *testing.T) {
	dir := t.TempDir()
	serve := func(args ...string) []string {
		return append([]string{"serve", "--standalone", "--hpa-dir", dir}, args...)
	}
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"which of them is this":          {serve("--peers=127.0.0.1:1,127.0.0.1:2"), "--peers-address"},
		"of several, and there are none": {serve("--peers-address=127.0.0.1:1"), "--peers or --peers-service"},
		"both ways":                      {serve("--peers=127.0.0.1:1", "--peers-address=127.0.0.1:1", "--peers-service=a/b"), "give one of them"},
		"no API server to ask":           {serve("--peers-service=a/b"), "asks the API server"},
		"no Service":                     {[]string{"serve", "--peers-service=meshpulse-peers"}, "NAMESPACE/NAME"},
		"anybody could be one":           {serve("--peers=10.0.0.1:1", "--peers-address=127.0.0.1:1"), "--peers-cert-dir"},
		"which of them the others find":  {serve("--peers=127.0.0.1:1,127.0.0.1:2", "--peers-address=127.0.0.1:3", "--replica-name=meshpulse-0"), "none of --peers"},
		"no port":                        {serve("--peers=127.0.0.1", "--peers-address=127.0.0.1:1"), "HOST:PORT"},
		"files that are not there":       {serve("--peers=127.0.0.1:1", "--peers-address=127.0.0.1:1", "--peers-cert-dir="+dir), "--peers-cert-dir"},
	} {
		if code, _, stderr := call(t.Context(), test.args...); code == exitOK || !strings.Contains(stderr, test.want) {
			t.Errorf("%s: code %d, told %s", name, code, stderr)
		}
	}
}

// free returns addresses of loopback that nobody listens on.
func free(t *testing.T, n int) (addresses []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses
}

// serving is a process of meshpulse within the test's.
type serving struct {
	ingest, https string
	end           func()
}

func serveReplica(t *testing.T, dir, own string, all []string, more ...string) *serving {
	t.Helper()
	ports := free(t, 2)
	s := &serving{ingest: ports[0], https: ports[1]}
	_, port, err := net.SplitHostPort(s.https)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var ran sync.WaitGroup
	// Not by the command, which sets the logger of the API server's library: there is one a
	// process.
	var o serveOptions
	f := o.flags(console{io.Discard, io.Discard, nil})
	if err := parse(f, append([]string{
		"--standalone", "--hpa-dir", dir, "--ingest-address", s.ingest, "--secure-port", port,
		"--peers", strings.Join(all, ","), "--peers-address", own,
	}, more...)); err != nil {
		t.Fatal(err)
	}
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	serves, err := newServer(o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ran.Go(func() {
		if err := serves.run(ctx, ctx); err != nil {
			t.Error(err)
		}
	})
	s.end = sync.OnceFunc(func() {
		cancel()
		ran.Wait()
	})
	t.Cleanup(s.end)
	return s
}

func (s *serving) get(path string) (int, string) {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}} //nolint:gosec // self-signed
	response, err := client.Get("https://" + s.https + path)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(body)
}

// until asks until the answer is right.
func (s *serving) until(t *testing.T, path string, right func(code int, body string) bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		code, body := s.get(path)
		if right(code, body) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s gives %d: %s", path, code, body)
		}
	}
}

// exampleFolder is a folder with an HPA, and the path at which its metric is asked for.
func exampleFolder(t *testing.T) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	example, err := os.ReadFile(filepath.Join("..", "..", "manifests", "examples", "requests-total.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hpa.yaml"), example, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, "/apis/external.metrics.k8s.io/v1beta1/namespaces/test/prometheus-query?labelSelector=query-name%3Dprocessed-requests-per-second"
}

// report replays a sidecar's stream. It is not done by the command line, which silences gRPC's log
// for the process: the replicas write to it.
func (s *serving) report(t *testing.T) {
	t.Helper()
	capture := filepath.Join("..", "..", "envoystats", "testdata", "captures", "a-default", "stream-0.pb.gz")
	if err := replay.Run(t.Context(), replay.Config{Target: s.ingest, Files: []string{capture}, Speed: 50, Wait: reachWithin}); err != nil {
		t.Fatal(err)
	}
}

// hasValue says whether an answer has a value, and whose it is.
func hasValue(code int, body string) bool {
	var list struct {
		Items []struct {
			Value        string
			MetricLabels map[string]string
		}
	}
	if code != http.StatusOK || json.Unmarshal([]byte(body), &list) != nil || len(list.Items) != 1 {
		return false
	}
	return list.Items[0].MetricLabels["meshpulse_replica"] != "" && list.Items[0].Value != "0"
}

func isReady(code int, _ string) bool { return code == http.StatusOK }

// A sidecar that is connected to one of two replicas is known to both, also to one that no sidecar
// reaches, and when the one ends the other answers as before.
func TestTwoReplicasAnswerAsOne(t *testing.T) {
	dir, path := exampleFolder(t)
	all := free(t, 2)
	a, b := serveReplica(t, dir, all[0], all), serveReplica(t, dir, all[1], all)
	a.until(t, "/readyz", isReady)
	b.until(t, "/readyz", isReady)
	a.report(t)
	a.until(t, path, hasValue)
	b.until(t, path, hasValue)
	a.end()
	b.until(t, path, hasValue)
	b.until(t, "/metrics", func(_ int, body string) bool {
		return strings.Contains(body, fmt.Sprintf("meshpulse_relay_silent_seconds{replica=%q} 3600", all[0]))
	})
}

// wire leads connections to an address, and can be cut.
type wire struct {
	address, to string
	mu          sync.Mutex
	isCut       bool
	conns       []net.Conn
}

func openWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	w := &wire{address: l.Addr().String(), to: to}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.lead(c)
		}
	}()
	return w
}

func (w *wire) lead(c net.Conn) {
	defer func() { _ = c.Close() }()
	up, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	defer func() { _ = up.Close() }()
	w.mu.Lock()
	if w.isCut {
		w.mu.Unlock()
		return
	}
	w.conns = append(w.conns, c, up)
	w.mu.Unlock()
	go func() {
		_, _ = io.Copy(c, up)
		_ = c.Close()
	}()
	_, _ = io.Copy(up, c)
}

// cut ends what it leads, and leads nothing until it is called with false.
func (w *wire) cut(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = on
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}

// Two that are cut off from each other, and not from sidecars: who has a flush answers, the other
// says that it has none, and knows what is sent once they talk again. Each is found at the address
// of what leads to it, and listens at another.
func TestReplicasThatAreCutOffFromEachOther(t *testing.T) {
	dir, path := exampleFolder(t)
	own := free(t, 2)
	wires := []*wire{openWire(t, own[0]), openWire(t, own[1])}
	all := []string{wires[0].address, wires[1].address}
	a, b := serveReplica(t, dir, own[0], all, "--replica-name", all[0]), serveReplica(t, dir, own[1], all, "--replica-name", all[1])
	a.until(t, "/readyz", isReady)
	b.until(t, "/readyz", isReady)
	heard := fmt.Sprintf("meshpulse_relay_silent_seconds{replica=%q} 0", all[0])
	b.until(t, "/metrics", func(_ int, body string) bool { return strings.Contains(body, heard) })
	for _, w := range wires {
		w.cut(true)
	}
	b.until(t, "/metrics", func(_ int, body string) bool { return !strings.Contains(body, heard) })
	a.report(t)
	a.until(t, path, hasValue)
	if code, body := b.get(path); code != http.StatusServiceUnavailable || !strings.Contains(body, "no sidecar") {
		t.Errorf("who has no flush says %d: %s", code, body)
	}
	for _, w := range wires {
		w.cut(false)
	}
	b.until(t, "/metrics", func(_ int, body string) bool { return strings.Contains(body, heard) })
	b.until(t, path, hasValue) // the other's, as long as it has none of its own
	a.report(t)
	a.end()
	b.until(t, path, hasValue)
}

// Nobody waits at the end for a replica that is not there: a pod has to end within 5 s.
func TestTheEndDoesNotWaitForAReplicaThatIsAway(t *testing.T) {
	if lingering+drainOfStreams+relayLimit >= exitLimit {
		t.Errorf("a pod serves on for %s, ends streams in %s and relays for %s: that is not within %s", lingering, drainOfStreams, relayLimit, exitLimit)
	}
}

// drainOfStreams is what envoystats' sink gives streams to end.
const drainOfStreams = time.Second

func TestWhatWaitsForAReplicaIsAPartOfTheMemoryBudget(t *testing.T) {
	for _, tc := range []struct {
		given  int
		budget int64
		want   int
	}{
		{0, 0, 64 << 20},
		{0, 1 << 30, 64 << 20},
		{0, 128 << 20, 16 << 20},
		{100 << 20, 128 << 20, 100 << 20}, // as it is said
	} {
		if got := queueBytes(tc.given, tc.budget); got != tc.want {
			t.Errorf("%d given, of a budget of %d: %d, want %d", tc.given, tc.budget, got, tc.want)
		}
	}
}
