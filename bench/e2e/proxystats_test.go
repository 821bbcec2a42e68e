package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/bench/sidecar"
	"github.com/meshpulse/meshpulse/bench/standalone"
	"github.com/meshpulse/meshpulse/bench/web"
	"github.com/meshpulse/meshpulse/envoystats"
)

// All that a real Envoy sends of itself is, by name, labels and value, what its own Prometheus page
// shows, whether its tags are in the names or labels.
func TestEnvoysOwnMetricsAreThoseOfItsPrometheusPage(t *testing.T) {
	for mode, asLabels := range map[string]bool{"tags in names": false, "tags as labels": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			store, sink := serveInside(t, envoystats.Config{Keep: []string{"envoy_"}})
			upstream, open := holdingApp(t)
			e, err := sidecar.Start(t.Context(), sidecar.Options{
				Dir: t.TempDir(), Pod: "podinfo-0", Namespace: "test", Workload: "podinfo", Address: "127.0.0.1",
				Upstreams: []string{upstream}, Sink: sink, FlushInterval: flush, TagsAsLabels: asLabels,
				Annotations: map[string]string{"sidecar.istio.io/statsInclusionRegexps": ".*"},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(e.Kill)
			send(t, e, "web", 0, 2) // they end
			for range 3 {
				open(e.Address())
			}
			await(t, "what is told is what Envoy shows", func() error {
				shown, err := page(t.Context(), e)
				if err != nil {
					return err
				}
				if n := shown[`envoy_http_downstream_rq_active{http_conn_manager_prefix="inbound_0.0.0.0_9898"}`]; n != 3 {
					return fmt.Errorf("%v requests are open, want 3", n)
				}
				told, err := toldOf(t.Context(), store)
				if err != nil {
					return err
				}
				if diff := cmp.Diff(shown, told); diff != "" {
					return errors.New("Envoy's page -, told +\n" + diff)
				}
				return nil
			})
		})
	}
}

// serveInside runs a store and a sink in this process, and returns the sink's address.
func serveInside(t *testing.T, c envoystats.Config) (*aggregator.Store, string) {
	t.Helper()
	store, err := aggregator.New(aggregator.Config{Keep: c.Kept()})
	if err != nil {
		t.Fatal(err)
	}
	server, err := envoystats.NewServer(c, store)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		if err := server.Serve(l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = server.Shutdown(ctx)
		served.Wait()
	})
	return store, l.Addr().String()
}

// holdingApp answers requests that come without the path /open, and keeps those until the test
// ends; open sends one to a sidecar of it.
func holdingApp(t *testing.T) (address string, open func(sidecar string)) {
	t.Helper()
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/open" {
			<-release
		}
		w.WriteHeader(http.StatusOK)
	}))
	var sent sync.WaitGroup
	t.Cleanup(func() {
		close(release)
		sent.Wait()
		s.Close()
	})
	return s.Listener.Addr().String(), func(address string) {
		sent.Go(func() {
			if resp, err := http.Get("http://" + address + "/open"); err == nil {
				_ = resp.Body.Close()
			}
		})
	}
}

// moves says of which metrics nothing can be compared but that they are there: they change between
// a flush and the page, and some with the page itself.
func moves(series string) bool {
	return slices.ContainsFunc([]string{"_bytes", "memory", "uptime", "recent_lookups", "total_connections", "metrics_service", "_version"}, func(part string) bool {
		return strings.Contains(series, part)
	})
}

// left says which metrics are not compared: Istio's, those of the admin port, that the page is
// asked at, and the sums of histograms, which are added up of intervals here.
func left(series string) bool {
	return slices.ContainsFunc([]string{"istiocustom", "admin", "_sum"}, func(part string) bool { return strings.Contains(series, part) })
}

// page reads what Envoy shows.
func page(ctx context.Context, e *sidecar.Sidecar) (map[string]float64, error) {
	body, err := web.Get(ctx, http.DefaultClient, e.AdminURL()+"/stats/prometheus?usedonly")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	all := map[string]float64{}
	for _, f := range families {
		samples, err := expfmt.ExtractSamples(&expfmt.DecodeOptions{Timestamp: model.Now()}, f)
		if err != nil {
			return nil, err
		}
		for _, s := range samples {
			note(all, s.Metric, float64(s.Value))
		}
	}
	return all, nil
}

// toldOf is what the store has of the sidecar's own, as Prometheus' engine reads it.
func toldOf(ctx context.Context, store *aggregator.Store) (map[string]float64, error) {
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: math.MaxInt32, Timeout: time.Minute})
	q, err := engine.NewInstantQuery(ctx, store.Queryable(math.MaxInt32), nil, `{__name__=~"envoy_.+",namespace="test",pod="podinfo-0",workload="podinfo",app="podinfo"}`, time.Now())
	if err != nil {
		return nil, err
	}
	defer q.Close()
	r := q.Exec(ctx)
	if r.Err != nil {
		return nil, r.Err
	}
	vector, err := r.Vector()
	if err != nil {
		return nil, err
	}
	all := map[string]float64{}
	for _, s := range vector {
		if s.H != nil {
			continue
		}
		m := model.Metric{}
		for name, value := range s.Metric.Map() {
			if !slices.Contains([]string{"namespace", "pod", "workload", "app", "version", "service_istio_io_canonical_name", "service_istio_io_canonical_revision"}, name) {
				m[model.LabelName(name)] = model.LabelValue(value)
			}
		}
		note(all, m, s.F)
	}
	return all, nil
}

func note(all map[string]float64, m model.Metric, v float64) {
	if le, err := strconv.ParseFloat(string(m[model.BucketLabel]), 64); err == nil { // the one writes 3.6e+06, the other 3600000
		m[model.BucketLabel] = model.LabelValue(strconv.FormatFloat(le, 'g', -1, 64))
	}
	series := m.String()
	switch {
	case left(series):
	case moves(series):
		all[series] = 0
	default:
		all[series] = v
	}
}

// The requests that are open now, from the pod's first flush on, before any has ended.
func TestOpenRequestsAreCountedBeforeTheyEnd(t *testing.T) {
	hpas := t.TempDir()
	for name, workload := range map[string]string{"active": "podinfo", "unsent": "old"} {
		writeFile(t, filepath.Join(hpas, name+".yaml"), fmt.Sprintf(`apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: %s, namespace: test}
spec:
  maxReplicas: 10
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: %[2]s}
  metrics:
    - type: External
      external:
        metric: {name: istio-requests-active, selector: {matchLabels: {destination_workload: %[2]s}}}
        target: {type: AverageValue, averageValue: "10"}
`, name, workload))
	}
	s := serve(t, standalone.Options{HPADir: hpas, Args: []string{"--keep", "istio_requests_total,envoy_http_downstream_rq_active"}})
	upstream, open := holdingApp(t)
	own := func(o *sidecar.Options) {
		o.Upstreams, o.Annotations = []string{upstream}, map[string]string{"sidecar.istio.io/statsInclusionRegexps": `http\.inbound_.*\.downstream_rq_active`}
	}
	first := envoy(t, s, "podinfo-0", own)
	envoy(t, s, "podinfo-1", own)
	old := envoy(t, s, "old-0", func(o *sidecar.Options) { o.Workload = "old" })
	active := func(want float64) {
		t.Helper()
		await(t, "active", func() error {
			items, err := s.Values(t.Context(), "test", "istio-requests-active", "destination_workload=podinfo")
			if err != nil {
				return err
			}
			if got := items[0].Value.AsApproximateFloat64(); len(items) != 1 || got != want {
				return fmt.Errorf("%d items, the first of %v; want %v", len(items), got, want)
			}
			return nil
		})
	}
	active(0) // neither has had a request
	for range 4 {
		open(first.Address())
	}
	active(4)
	send(t, old, "web", 0, 1)
	await(t, "an error where it is not sent", func() error {
		items, err := s.Values(t.Context(), "test", "istio-requests-active", "destination_workload=old")
		if err == nil || !strings.Contains(err.Error(), "sidecar.istio.io/statsInclusionRegexps") {
			return fmt.Errorf("got %v, %v", items, err)
		}
		return nil
	})
}
