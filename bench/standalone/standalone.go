// Package standalone runs meshpulse as its users do, as a child process with files for HPAs, and asks it as a
// HorizontalPodAutoscaler's controller would.
//
// It knows the command line and the HTTP API. It must not reach into the process.
package standalone

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/metricsapi"
)

// startLimit bounds how long Start waits for the ports (seen: half a second).
const startLimit = 30 * time.Second

// Options is what to run. Binary, Dir and HPADir must be set.
type Options struct {
	// Binary is the meshpulse to run.
	Binary string
	// Dir takes the log, meshpulse.log.
	Dir string
	// HPADir is the folder with the HPAs' files.
	HPADir string
	// Ingest is the ingest's host:port (default 127.0.0.1:0, a free one).
	Ingest string
	// Args are further flags of serve.
	Args []string
}

// Server is a running meshpulse.
type Server struct {
	// Ingest is where sidecars report, host:port.
	Ingest string
	// URL is the base of the API, such as https://127.0.0.1:6443.
	URL string

	process *process.Process
	client  *http.Client
}

// Start runs meshpulse on loopback and returns when its ports are open. The caller must Stop it; it also dies with this
// process.
func Start(ctx context.Context, o Options) (*Server, error) {
	ingest := o.Ingest
	if ingest == "" {
		ingest = "127.0.0.1:0"
	}
	log := filepath.Join(o.Dir, "meshpulse.log")
	// A log of an earlier run would tell its ports.
	if err := os.Remove(log); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	args := append([]string{
		"serve", "--standalone", "--hpa-dir", o.HPADir, "--log-format", "json",
		"--ingest-address", ingest, "--bind-address", "127.0.0.1", "--secure-port", "0",
	}, o.Args...)
	p, err := process.Start(log, o.Binary, args...)
	if err != nil {
		return nil, err
	}
	// The certificate is self-made and in memory; the address is this machine's own.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	s := &Server{process: p, client: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := s.waitUntilServing(ctx); err != nil {
		p.Kill()
		return nil, fmt.Errorf("meshpulse: %w; %s says:\n%s", err, log, p.Cause(15))
	}
	return s, nil
}

func (s *Server) waitUntilServing(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !s.findPorts() {
		select {
		case <-s.process.Exited():
			return fmt.Errorf("ended with code %d before it served", s.process.ExitCode())
		case <-ctx.Done():
			return fmt.Errorf("does not serve: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}

// findPorts reads the ports that were chosen from the log.
func (s *Server) findPorts() bool {
	log, err := os.ReadFile(s.process.Log)
	if err != nil {
		return false
	}
	lines := bufio.NewScanner(bytes.NewReader(log))
	for lines.Scan() {
		var entry struct{ Msg, Ingest, HTTPS string }
		if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Msg == "serving" {
			s.Ingest, s.URL = entry.Ingest, "https://"+entry.HTTPS
			return true
		}
	}
	return false
}

// Exited is closed once meshpulse has ended.
func (s *Server) Exited() <-chan struct{} { return s.process.Exited() }

// Log is the file that it logs to, Tail the end of it.
func (s *Server) Log() string { return s.process.Log }

// Tail returns the last lines of the log.
func (s *Server) Tail(lines int) string { return s.process.Tail(lines) }

// Stop ends it with SIGTERM and waits until it is gone. An exit code other than 0 is an error.
func (s *Server) Stop() error {
	s.client.CloseIdleConnections()
	if err := s.process.Stop(); err != nil {
		return err
	}
	if code := s.process.ExitCode(); code != 0 {
		return fmt.Errorf("meshpulse ended with code %d; %s says:\n%s", code, s.process.Log, s.process.Cause(15))
	}
	return nil
}

// APIError is an answer that is not 200 OK.
type APIError struct {
	Code    int
	Message string
}

func (e *APIError) Error() string { return fmt.Sprintf("%d: %s", e.Code, e.Message) }

// Get asks for a path and decodes the JSON answer. The error of an answer other than 200 is an *APIError.
func (s *Server) Get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+path, nil)
	if err != nil {
		return err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		var status struct{ Message string }
		if json.Unmarshal(body, &status) != nil || status.Message == "" {
			status.Message = strings.TrimSpace(string(body))
		}
		return &APIError{resp.StatusCode, status.Message}
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Status is the state of every metric of every HPA.
func (s *Server) Status(ctx context.Context) (metricsapi.Status, error) {
	var status metricsapi.Status
	err := s.Get(ctx, "/debug/hpas", &status)
	return status, err
}

const externalMetrics = "/apis/external.metrics.k8s.io/v1beta1"

// Resource is an entry of the external metrics API's discovery.
type Resource struct {
	Name       string
	Namespaced bool
	Kind       string
	Verbs      []string
}

// Resources is what discovery lists: one entry a metric name that an HPA uses.
func (s *Server) Resources(ctx context.Context) ([]Resource, error) {
	var list struct{ Resources []Resource }
	err := s.Get(ctx, externalMetrics, &list)
	return list.Resources, err
}

// Value is one item of an answer. Value is a Kubernetes quantity, see Quantity.
type Value struct {
	MetricName    string
	MetricLabels  map[string]string
	Timestamp     time.Time
	WindowSeconds int64 `json:"window"`
	Value         string
}

// Values asks for a metric with a label selector, as an HPA controller does.
func (s *Server) Values(ctx context.Context, namespace, metric, selector string) ([]Value, error) {
	var list struct{ Items []Value }
	err := s.Get(ctx, MetricPath(namespace, metric, selector), &list)
	return list.Items, err
}

// MetricPath is the path of an external metric under the API's base.
func MetricPath(namespace, metric, selector string) string {
	return externalMetrics + "/namespaces/" + namespace + "/" + metric + "?labelSelector=" + url.QueryEscape(selector)
}
