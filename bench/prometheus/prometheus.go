// Package prometheus runs a real Prometheus and asks it: what meshpulse is compared with.
//
// It knows the program's flags and HTTP API. What is scraped, and why, is its callers'.
package prometheus

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/web"
)

// startLimit bounds how long it takes until it is ready (seen: a second).
const startLimit = time.Minute

// Options is what to run. All but Flags must be set.
type Options struct {
	// Binary is Prometheus.
	Binary string
	// Dir takes prometheus.yml, prometheus.log and, until it is stopped, its data.
	Dir string
	// Address is where it listens, host:port.
	Address string
	// Config is the text of prometheus.yml.
	Config string
	// Flags are more of its flags.
	Flags []string
}

// Server is a running Prometheus.
type Server struct {
	*process.Process
	dir, url string
}

// Start returns when Prometheus is ready. The caller must Kill it; it also dies with this process.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := &Server{dir: o.Dir, url: "http://" + o.Address}
	if err := os.MkdirAll(o.Dir, 0o750); err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.config(), []byte(o.Config), 0o600); err != nil {
		return nil, err
	}
	var err error
	s.Process, err = process.Start(filepath.Join(o.Dir, "prometheus.log"), o.Binary, append([]string{
		"--config.file=" + s.config(), "--storage.tsdb.path=" + filepath.Join(o.Dir, "data"),
		"--web.listen-address=" + o.Address, "--web.enable-lifecycle",
	}, o.Flags...)...)
	if err != nil {
		return nil, err
	}
	err = s.Await(ctx, startLimit, func(ctx context.Context) error {
		_, err := web.Get(ctx, http.DefaultClient, s.url+"/-/ready")
		return err
	})
	if err != nil {
		s.Kill()
		return nil, fmt.Errorf("prometheus: %w", err)
	}
	return s, nil
}

func (s *Server) config() string { return filepath.Join(s.dir, "prometheus.yml") }

// URL is the base of its API, such as http://127.0.0.1:9090.
func (s *Server) URL() string { return s.url }

// Kill ends it at once and removes its data.
func (s *Server) Kill() {
	s.Process.Kill()
	_ = os.RemoveAll(filepath.Join(s.dir, "data")) // what stays behind is only in the way
}

// Reload has it read another configuration.
func (s *Server) Reload(ctx context.Context, config string) error {
	if err := os.WriteFile(s.config(), []byte(config), 0o600); err != nil {
		return err
	}
	if _, err := web.Do(ctx, http.DefaultClient, http.MethodPost, s.url+"/-/reload"); err != nil {
		return fmt.Errorf("prometheus does not take its configuration: %w:\n%s", err, s.Tail(5))
	}
	return nil
}

// Samples asks for the values of each series of an expression: of an instant vector the one, of a
// range vector all, by time.
func (s *Server) Samples(ctx context.Context, expr string) ([][]float64, error) {
	body, err := web.Get(ctx, http.DefaultClient, s.url+"/api/v1/query?"+url.Values{"query": {expr}}.Encode())
	if err != nil {
		return nil, err
	}
	return parse(body)
}

func parse(body []byte) ([][]float64, error) {
	var answer struct {
		Data struct {
			Result []struct {
				Value  *[2]any
				Values [][2]any
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("prometheus: %w", err)
	}
	var all [][]float64
	for _, series := range answer.Data.Result {
		if series.Value != nil {
			series.Values = append(series.Values, *series.Value)
		}
		var values []float64
		for _, v := range series.Values {
			n, err := strconv.ParseFloat(fmt.Sprint(v[1]), 64)
			if err != nil {
				return nil, fmt.Errorf("prometheus: %w", err)
			}
			values = append(values, n)
		}
		all = append(all, values)
	}
	return all, nil
}

// Firing asks for the names of the alerts that fire, sorted, each once.
func (s *Server) Firing(ctx context.Context) ([]string, error) {
	body, err := web.Get(ctx, http.DefaultClient, s.url+"/api/v1/alerts")
	if err != nil {
		return nil, err
	}
	return firing(body)
}

func firing(body []byte) ([]string, error) {
	var answer struct {
		Data struct {
			Alerts []struct {
				Labels map[string]string
				State  string
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("prometheus: %w", err)
	}
	var names []string
	for _, a := range answer.Data.Alerts {
		if a.State == "firing" {
			names = append(names, a.Labels["alertname"])
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Value asks for the one value of an expression.
func (s *Server) Value(ctx context.Context, expr string) (float64, error) {
	all, err := s.Samples(ctx, expr)
	if err != nil {
		return 0, err
	}
	if len(all) != 1 || len(all[0]) != 1 {
		return 0, fmt.Errorf("prometheus: %d values of %s, want one", len(all), expr)
	}
	return all[0][0], nil
}

// Version is that of the module that a binary was built as: built by go build alone, it does not
// know itself.
func Version(binary string) (string, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return "", err
	}
	modules := append(info.Deps, &info.Main)
	i := slices.IndexFunc(modules, func(m *debug.Module) bool { return m.Path == "github.com/prometheus/prometheus" })
	if i < 0 {
		return "", fmt.Errorf("%s is not Prometheus", binary)
	}
	return modules[i].Version, nil
}
