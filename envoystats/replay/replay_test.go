package replay_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats"
	"github.com/meshpulse/meshpulse/envoystats/replay"
)

// sink serves a real sink on a real store until the test ends.
func sink(t *testing.T) (target string, store *aggregator.Store) {
	t.Helper()
	return sinkWith(t, envoystats.Config{}, aggregator.Config{})
}

func sinkWith(t *testing.T, c envoystats.Config, sc aggregator.Config) (target string, store *aggregator.Store) {
	t.Helper()
	return sinkAt(t, "127.0.0.1:0", c, sc)
}

func sinkAt(t *testing.T, address string, c envoystats.Config, sc aggregator.Config) (target string, store *aggregator.Store) {
	t.Helper()
	store, err := aggregator.New(sc)
	if err != nil {
		t.Fatal(err)
	}
	c.Logger = slog.New(slog.DiscardHandler)
	server, err := envoystats.NewServer(c, store)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	t.Cleanup(func() {
		if err := server.Shutdown(t.Context()); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return lis.Addr().String(), store
}

func files(t *testing.T, folder string) []string {
	t.Helper()
	all, err := filepath.Glob("../testdata/captures/" + folder + "/*.pb.gz")
	if err != nil || len(all) == 0 {
		t.Fatalf("no captures in %s, error %v", folder, err)
	}
	return all
}

// value returns the one number that an expression says now.
func value(t *testing.T, store *aggregator.Store, expr string) float64 {
	t.Helper()
	q, err := store.Query(expr)
	if err != nil {
		t.Fatal(err)
	}
	a, err := q.Eval(t.Context(), time.Now().Add(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Values) != 1 {
		return math.NaN()
	}
	return a.Values[0].V
}

func TestReplayedCapturesGiveTheRequestsThatWereSent(t *testing.T) {
	for _, test := range []struct {
		folder string
		want   float64
		config aggregator.Config
	}{
		{folder: "a-default", want: 240},
		{folder: "b-labels", want: 240},
		{folder: "c-histogram-only-batch", want: 160},
		{folder: "d-eviction", want: 80},
		{folder: "e-stream-ended-by-receiver", want: 200},
		{folder: "f-envoy-restart", want: 111},
		{folder: "g-hostile-names", want: 50},
		{folder: "h-codes-and-flags", want: 120},
		{folder: "j-all-stats", want: 80},
		{folder: "k-counter-deltas", want: 120, config: aggregator.Config{CountersAsDeltas: true}},
	} {
		t.Run(test.folder, func(t *testing.T) {
			t.Parallel()
			target, store := sinkWith(t, envoystats.Config{}, test.config)
			c := replay.Config{Target: target, Files: files(t, test.folder), Speed: 50}
			if err := replay.Run(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			for _, expr := range []string{
				"sum(max_over_time(istio_requests_total[5m]))",
				`sum(max_over_time(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination",namespace="test"}[5m]))`,
			} {
				if got := value(t, store, expr); got != test.want {
					t.Errorf("%s = %v, want %v", expr, got, test.want)
				}
			}
		})
	}
}

func TestAllFilesOfANodeAreConfirmedInTheirOrderWhateverTheOrderOfTheArguments(t *testing.T) {
	target, _ := sink(t)
	var mu sync.Mutex
	var done []string
	names := files(t, "e-stream-ended-by-receiver")
	slices.Reverse(names)
	sent := map[string]replay.Progress{}
	c := replay.Config{Target: target, Files: names, Speed: 100, Progress: func(p replay.Progress) {
		mu.Lock()
		defer mu.Unlock()
		sent[p.File] = p
		if p.Done {
			done = append(done, filepath.Base(p.File))
		}
	}}
	if err := replay.Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if want := []string{"stream-0.pb.gz", "stream-1.pb.gz", "stream-2.pb.gz"}; !slices.Equal(done, want) {
		t.Errorf("streams ended in the order %v, want %v", done, want)
	}
	for file, p := range sent {
		if p.Sent != 4 || p.Messages != 4 || p.Bytes < 50_000 || !strings.Contains(p.Node, "podinfo") {
			t.Errorf("%s: last progress %+v", file, p)
		}
	}
}

func TestLingerKeepsTheLastStreamOpenAfterEverythingIsSent(t *testing.T) {
	target, _ := sink(t)
	const linger = 150 * time.Millisecond
	var last time.Time
	c := replay.Config{Target: target, Files: files(t, "f-envoy-restart"), Speed: 1000, Linger: linger, Progress: func(p replay.Progress) {
		if !p.Done {
			last = time.Now()
		}
	}}
	if err := replay.Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if open := time.Since(last); open < linger {
		t.Errorf("the last stream stayed open for %s after the last message, want %s at least", open, linger)
	}
}

func TestBadInputNamesTheFileAndWhatIsWrongWithIt(t *testing.T) {
	dir := t.TempDir()
	capture := files(t, "a-default")[0]
	whole, err := os.ReadFile(capture)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	target, _ := sink(t)
	few := write("few.pb.gz", whole)
	write("few.times", []byte("1795327880224 62181\n"))
	unread := write("unread.pb.gz", whole)
	write("unread.times", []byte("yesterday\n"))
	for _, test := range []struct {
		name, file, want string
	}{
		{"a file that is not there", filepath.Join(dir, "none.pb.gz"), "no such file"},
		{"a truncated file", write("cut.pb.gz", whole[:len(whole)/2]), "message at byte 0: file is truncated"},
		{"text", write("text.pb", []byte("nothing of the kind, but long enough to be read as the length of one message and its bytes, all of them, and more")), "not a recording"},
		{"an empty file", write("empty.pb", nil), "file holds no messages"},
		{"a stream without a node", write("anonymous.pb", []byte{2, 0x0a, 0}), "first message says no node"},
		{"fewer times than messages", few, "few.times: 1 lines for 7 messages"},
		{"times that are none", unread, `unread.times: not receive times, one a line in unix milliseconds, for every message: line "yesterday"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := replay.Run(t.Context(), replay.Config{Target: target, Files: []string{capture, test.file}, Speed: 1000})
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), strings.Split(filepath.Base(test.file), ".")[0]) {
				t.Errorf("error %v, want one with %q and the file's name", err, test.want)
			}
		})
	}
}

func TestASinkThatIsNotThereOrRefusesIsAnErrorThatNamesIt(t *testing.T) {
	nobody := closedPort(t)
	capture := files(t, "a-default")[0]
	for _, wait := range []time.Duration{0, 300 * time.Millisecond} {
		err := replay.Run(t.Context(), replay.Config{Target: nobody, Files: []string{capture}, Wait: wait})
		if err == nil || !strings.Contains(err.Error(), nobody) || !strings.Contains(err.Error(), capture) ||
			!strings.Contains(err.Error(), "refused") {
			t.Errorf("nobody listens within %s: error %v", wait, err)
		}
	}

	small, _ := sinkWith(t, envoystats.Config{MaxMessageBytes: 1000}, aggregator.Config{})
	err := replay.Run(t.Context(), replay.Config{Target: small, Files: []string{capture}, Speed: 1000})
	if err == nil || !strings.Contains(err.Error(), capture) || !strings.Contains(err.Error(), "larger than max (62181 vs. 1000)") {
		t.Errorf("messages are too large for the sink: error %v", err)
	}
}

// closedPort returns an address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	return lis.Addr().String()
}

func TestATargetThatBeginsToListenLaterIsWaitedFor(t *testing.T) {
	target := closedPort(t)
	c := replay.Config{Target: target, Files: files(t, "a-default"), Speed: 1000, Wait: time.Minute}
	replayed := make(chan error, 1)
	go func() { replayed <- replay.Run(t.Context(), c) }()
	select {
	case err := <-replayed:
		t.Fatalf("it did not wait: error %v", err)
	case <-time.After(200 * time.Millisecond): // only makes it likely that it has tried before there is a sink
	}
	sinkAt(t, target, envoystats.Config{}, aggregator.Config{})
	if err := <-replayed; err != nil {
		t.Errorf("the target listens now: error %v", err)
	}
}

func TestAReplayThatWaitsEndsWithItsContext(t *testing.T) {
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	c := replay.Config{Target: closedPort(t), Files: files(t, "a-default"), Wait: time.Hour}
	if err := replay.Run(ctx, c); !errors.Is(err, why) {
		t.Errorf("error %v, want %v", err, why)
	}
}

func TestAReplayEndsWithItsContext(t *testing.T) {
	target, _ := sink(t)
	why := fmt.Errorf("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	c := replay.Config{Target: target, Files: files(t, "a-default"), Progress: func(replay.Progress) { cancel(why) }}
	if err := replay.Run(ctx, c); !errors.Is(err, why) {
		t.Errorf("error %v, want %v", err, why)
	}
}

func TestConfigNamesWhatCannotBeUsed(t *testing.T) {
	good := replay.Config{Target: "127.0.0.1:1", Files: []string{"x"}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		want string
		bad  func(*replay.Config)
	}{
		{"target", func(c *replay.Config) { c.Target = "localhost" }},
		{"target", func(c *replay.Config) { c.Target = "" }},
		{"no files", func(c *replay.Config) { c.Files = nil }},
		{"speed", func(c *replay.Config) { c.Speed = -1 }},
		{"speed", func(c *replay.Config) { c.Speed = math.NaN() }},
		{"linger", func(c *replay.Config) { c.Linger = -1 }},
		{"wait", func(c *replay.Config) { c.Wait = -1 }},
	} {
		c := good
		test.bad(&c)
		if err := c.Validate(); !errors.Is(err, replay.ErrConfig) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, want one with %q", c, err, test.want)
		}
	}
}
