// Package standalone runs meshpulse as its users do, as a child process with files for HPAs, and
// asks it as a HorizontalPodAutoscaler's controller would.
//
// It knows the command line and the HTTP API. It must not reach into the process.
package standalone

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/web"
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

// Serving is where a process serves, as it tells once it does: a line of JSON in its log.
type Serving struct {
	// Msg is "serving".
	Msg string `json:"msg"`
	// Ingest is where sidecars report, HTTPS where the API is (or another control port), Prometheus
	// where Prometheus' API is, host:port.
	Ingest     string `json:"ingest,omitempty"`
	HTTPS      string `json:"https,omitempty"`
	Prometheus string `json:"prometheus,omitempty"`
}

// Server is a running meshpulse.
type Server struct {
	*process.Process
	Serving
	// URL is the base of the API, such as https://127.0.0.1:6443.
	URL string

	client *http.Client
}

// Start runs meshpulse on loopback and returns when its ports are open. The caller must Stop it; it
// also dies with this process.
func Start(ctx context.Context, o Options) (*Server, error) {
	args := append([]string{
		"serve", "--standalone", "--hpa-dir", o.HPADir, "--log-format", "json",
		"--ingest-address", cmp.Or(o.Ingest, "127.0.0.1:0"), "--bind-address", "127.0.0.1", "--secure-port", "0",
	}, o.Args...)
	p, err := process.Start(filepath.Join(o.Dir, "meshpulse.log"), o.Binary, args...)
	if err != nil {
		return nil, err
	}
	at, err := AwaitServing(ctx, p)
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("meshpulse: %w", err)
	}
	return &Server{Process: p, Serving: at, URL: "https://" + at.HTTPS, client: web.Insecure()}, nil
}

// AwaitServing waits until a process tells where it serves.
func AwaitServing(ctx context.Context, p *process.Process) (at Serving, err error) {
	err = p.Await(ctx, startLimit, func(context.Context) error {
		lines, err := p.Lines()
		if err != nil {
			return err
		}
		for _, line := range lines {
			at = Serving{}
			if json.Unmarshal([]byte(line), &at) == nil && at.Msg == "serving" {
				return nil
			}
		}
		return errors.New("it does not serve")
	})
	return at, err
}

// Stop ends it with SIGTERM and waits until it is gone. An exit code other than 0 is an error.
func (s *Server) Stop() error {
	s.client.CloseIdleConnections()
	if err := s.Process.Stop(); err != nil {
		return err
	}
	if s.ExitCode() != 0 {
		return fmt.Errorf("meshpulse: %w", s.Ended())
	}
	return nil
}

// APIError is an answer that is not 200 OK.
type APIError struct {
	Code    int
	Message string
}

func (e *APIError) Error() string { return fmt.Sprintf("%d: %s", e.Code, e.Message) }

// Get asks for a path and decodes the JSON answer. The error of an answer other than 200 is an
// *APIError.
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

// Value is one item of an answer.
type Value struct {
	MetricName    string
	MetricLabels  map[string]string
	Timestamp     time.Time
	WindowSeconds int64 `json:"window"`
	Value         resource.Quantity
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
