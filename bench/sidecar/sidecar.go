// Package sidecar runs the stock Envoy as an Istio sidecar would: a pod's identity in the node,
// Istio's request metrics with their 25 tags, and the metrics-service sink that pushes them.
//
// It knows Envoy's bootstrap and its admin API. It must not know meshpulse: what it sends is what
// any receiver gets.
//
// The stock Envoy has no Istio stats filter; its stats access logger writes the same stats in its
// place.
package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/web"
)

// startLimit bounds how long Start waits for Envoy to serve (seen: well under a second on an idle
// machine).
const startLimit = 30 * time.Second

// Sidecar is a running Envoy.
type Sidecar struct {
	// Options are those it was started with, defaults filled in.
	Options Options

	process *process.Process
	admin   string // host:port
	inbound string // host:port
	files   files
}

// files are what a sidecar keeps in Options.Dir.
type files struct{ bootstrap, upstreams, admin, log string }

// Start writes the bootstrap, runs Envoy and returns when it serves. The caller must Stop or Kill
// it; it also dies with this process. Its files (bootstrap, log) are named after the pod and stay
// in Options.Dir.
func Start(ctx context.Context, o Options) (*Sidecar, error) {
	o = o.withDefaults()
	if err := o.Validate(); err != nil {
		return nil, err
	}
	binary := o.Binary
	if binary == "" {
		var err error
		if binary, err = EnvoyBinary(); err != nil {
			return nil, err
		}
	}
	base := filepath.Join(o.Dir, o.Pod)
	s := &Sidecar{Options: o, files: files{
		bootstrap: base + ".bootstrap.json", upstreams: base + ".upstreams.json", admin: base + ".admin", log: base + ".log",
	}}
	if err := s.writeFiles(); err != nil {
		return nil, err
	}
	var err error
	s.process, err = process.Start(s.files.log, binary, "-c", s.files.bootstrap, "--disable-hot-restart",
		"--concurrency", strconv.Itoa(o.Concurrency), "--admin-address-path", s.files.admin, "-l", "warning")
	if err != nil {
		return nil, err
	}
	if err := s.process.Await(ctx, startLimit, s.serving); err != nil {
		s.Kill()
		return nil, fmt.Errorf("envoy of pod %s: %w", o.Pod, err)
	}
	return s, nil
}

// Address is where the sidecar takes requests, host:port.
func (s *Sidecar) Address() string { return s.inbound }

// AdminURL is the base of Envoy's admin API, such as http://127.97.0.1:15000.
func (s *Sidecar) AdminURL() string { return "http://" + s.admin }

// PID is Envoy's process id.
func (s *Sidecar) PID() int { return s.process.PID() }

// Exited is closed once Envoy has ended.
func (s *Sidecar) Exited() <-chan struct{} { return s.process.Exited() }

// Stop ends Envoy with SIGTERM, upon which it sends one last flush (without histograms), and waits
// until it is gone.
func (s *Sidecar) Stop() error { return s.process.Stop() }

// Kill ends Envoy at once, with nothing sent, and waits until it is gone.
func (s *Sidecar) Kill() { s.process.Kill() }

// SetUpstreams replaces the addresses (host:port) that requests are forwarded to; none makes Envoy
// answer 503 (UH). Envoy takes the change up within moments, without a restart.
func (s *Sidecar) SetUpstreams(addresses ...string) error {
	s.Options.Upstreams = addresses
	return s.writeUpstreams()
}

// RequestsTotal is Envoy's own count of istio_requests_total over all label sets, from its admin
// API: the truth that what was pushed is held against.
func (s *Sidecar) RequestsTotal(ctx context.Context) (int64, error) {
	body, err := s.get(ctx, "/stats?usedonly&filter="+statPrefix+`\.istio_requests_total`)
	if err != nil {
		return 0, err
	}
	var total int64
	for line := range strings.Lines(string(body)) {
		colon := strings.LastIndex(line, ": ") // tags may hold some as well
		if colon < 0 {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(line[colon+2:]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("stats of pod %s: line %q: %w", s.Options.Pod, line, err)
		}
		total += n
	}
	return total, nil
}

func (s *Sidecar) writeFiles() error {
	// A file of an earlier run would tell the wrong admin address.
	if err := os.Remove(s.files.admin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := s.writeUpstreams(); err != nil {
		return err
	}
	b, err := bootstrap(s.Options, s.files.upstreams)
	if err != nil {
		return err
	}
	return os.WriteFile(s.files.bootstrap, b, 0o600)
}

// writeUpstreams moves the file into place: Envoy watches for the move.
func (s *Sidecar) writeUpstreams() error {
	b, err := endpoints(s.Options.Upstreams)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.files.upstreams+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(s.files.upstreams+".new", s.files.upstreams)
}

// serving reads the file with the admin address, then asks the admin API.
func (s *Sidecar) serving(ctx context.Context) error {
	b, err := os.ReadFile(s.files.admin)
	if err != nil {
		return err
	}
	s.admin = strings.TrimSpace(string(b))
	if s.admin == "" {
		return errors.New("no admin address yet")
	}
	if _, err := s.get(ctx, "/ready"); err != nil {
		return err
	}
	s.inbound, err = s.listener(ctx)
	return err
}

func (s *Sidecar) listener(ctx context.Context) (string, error) {
	b, err := s.get(ctx, "/listeners?format=json")
	if err != nil {
		return "", err
	}
	var doc struct {
		Statuses []struct {
			Local struct {
				Socket struct {
					Address string `json:"address"`
					Port    int    `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return "", fmt.Errorf("/listeners: %w", err)
	}
	if len(doc.Statuses) != 1 || doc.Statuses[0].Local.Socket.Port == 0 {
		return "", fmt.Errorf("/listeners: want one with a port, got %s", b)
	}
	socket := doc.Statuses[0].Local.Socket
	return net.JoinHostPort(socket.Address, strconv.Itoa(socket.Port)), nil
}

func (s *Sidecar) get(ctx context.Context, path string) ([]byte, error) {
	return web.Get(ctx, http.DefaultClient, s.AdminURL()+path)
}
