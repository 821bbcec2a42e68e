package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/meshpulse/meshpulse/bench/fleet"
	"github.com/meshpulse/meshpulse/bench/process"
)

// startLimit bounds how long a child takes until it serves.
const startLimit = 30 * time.Second

// child is a process under measurement, or one that loads it.
type child struct {
	Name string
	*process.Process
	serving
}

// start runs a command and waits until it tells where it serves.
func start(ctx context.Context, work, name, command string, args ...string) (*child, error) {
	log := filepath.Join(work, name+".log")
	if err := os.RemoveAll(log); err != nil { // an earlier run's would tell its ports
		return nil, err
	}
	p, err := process.Start(log, command, args...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if s, ok := findServing(log); ok {
			return &child{name, p, s}, nil
		}
		select {
		case <-p.Exited():
			return nil, fmt.Errorf("%s ended before it served:\n%s", name, p.Tail(15))
		case <-ctx.Done():
			p.Kill()
			return nil, fmt.Errorf("%s does not serve: %w\n%s", name, context.Cause(ctx), p.Tail(15))
		case <-tick.C:
		}
	}
}

func findServing(log string) (serving, bool) {
	b, err := os.ReadFile(log)
	if err != nil {
		return serving{}, false
	}
	for line := range bytes.Lines(b) {
		var s serving
		if json.Unmarshal(line, &s) == nil && s.Msg == "serving" {
			return s, true
		}
	}
	return serving{}, false
}

// startSelf runs one of this program's own commands.
func startSelf(ctx context.Context, s settings, command string, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return start(ctx, s.work, command, self, append([]string{command}, args...)...)
}

// meshpulseName is a child's that is meshpulse.
const meshpulseName = "meshpulse"

// startMeshpulse runs meshpulse standalone with the HPAs of a folder.
func startMeshpulse(ctx context.Context, s settings, hpaDir string, args ...string) (*child, error) {
	return start(ctx, s.work, meshpulseName, s.meshpulse, append([]string{
		"serve", "--standalone", "--hpa-dir", hpaDir, "--log-format", "json",
		"--ingest-address", "127.0.0.1:0", "--bind-address", "127.0.0.1", "--secure-port", "0",
	}, args...)...)
}

func (c *child) fleetStats(ctx context.Context) (fleet.Stats, error) {
	var st fleet.Stats
	b, err := get(ctx, http.DefaultClient, "http://"+c.HTTPS+"/stats")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(b, &st)
}

// messages is how many a receiver has read: the null sink says it as JSON, meshpulse among its own metrics.
func (c *child) messages(ctx context.Context) (int64, error) {
	if c.Name == nullSinkName {
		var stats struct{ Messages int64 }
		b, err := get(ctx, http.DefaultClient, "http://"+c.HTTPS+"/stats")
		if err != nil {
			return 0, err
		}
		err = json.Unmarshal(b, &stats)
		return stats.Messages, err
	}
	w := watch{meshpulse: c, client: insecureClient()}
	defer w.client.CloseIdleConnections()
	n, err := w.gauge(ctx, "meshpulse_ingest_messages_total")
	return int64(n), err
}

// get returns the body of an answer 200.
func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	return do(ctx, client, http.MethodGet, url)
}

func do(ctx context.Context, client *http.Client, method, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.300s", url, resp.Status, b)
	}
	return b, err
}

// wait sleeps, or returns the context's error when that ends first.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
