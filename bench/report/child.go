package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/bench/fleet"
	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/standalone"
	"github.com/meshpulse/meshpulse/bench/web"
)

// child is a process under measurement, or one that loads it.
type child struct {
	Name string
	*process.Process
	standalone.Serving
	client *http.Client
}

// meshpulseName is a child's that is meshpulse.
const meshpulseName = "meshpulse"

// startSelf runs one of this program's own commands, which tells where it serves.
func startSelf(ctx context.Context, s settings, command string, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := process.Start(filepath.Join(s.work, command+".log"), self, append([]string{command}, args...)...)
	if err != nil {
		return nil, err
	}
	at, err := standalone.AwaitServing(ctx, p)
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	return &child{command, p, at, http.DefaultClient}, nil
}

// startMeshpulse runs meshpulse standalone with the HPAs of a folder.
func startMeshpulse(ctx context.Context, s settings, hpaDir string, args ...string) (*child, error) {
	m, err := standalone.Start(ctx, standalone.Options{Binary: s.meshpulse, Dir: s.work, HPADir: hpaDir, Args: args})
	if err != nil {
		return nil, err
	}
	return &child{meshpulseName, m.Process, m.Serving, web.Insecure()}, nil
}

// fleetArgs are the flags of a fleet that puts a receiver under a load.
func fleetArgs(target string, l load, more ...string) []string {
	return append([]string{
		"--target", target, "--pods", strconv.Itoa(l.pods), "--label-sets", strconv.Itoa(l.labelSets),
		"--busiest", strconv.Itoa(l.busiest), "--interval", l.interval.String(), "--labels=" + strconv.FormatBool(l.labels),
	}, more...)
}

func (c *child) fleetStats(ctx context.Context) (fleet.Stats, error) {
	var st fleet.Stats
	b, err := web.Get(ctx, c.client, "http://"+c.HTTPS+"/stats")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(b, &st)
}

// messages is how many a receiver has read: the null sink says it as JSON, meshpulse among its own
// metrics.
func (c *child) messages(ctx context.Context) (int64, error) {
	if c.Name == nullSinkName {
		var stats struct{ Messages int64 }
		b, err := web.Get(ctx, c.client, "http://"+c.HTTPS+"/stats")
		if err != nil {
			return 0, err
		}
		err = json.Unmarshal(b, &stats)
		return stats.Messages, err
	}
	n, err := c.gauge(ctx, "meshpulse_ingest_messages_total")
	return int64(n), err
}

// gauge reads one of meshpulse's own metrics.
func (c *child) gauge(ctx context.Context, name string) (float64, error) {
	b, err := web.Get(ctx, c.client, "https://"+c.HTTPS+"/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(v), 64)
		}
	}
	return 0, fmt.Errorf("meshpulse has no metric %s", name)
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

// until asks, five times a second, until nothing is missing: nil. After the limit it returns what
// is.
func until(ctx context.Context, limit time.Duration, missing func() error) error {
	for deadline := time.Now().Add(limit); ; {
		err := missing()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		if err := wait(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}
