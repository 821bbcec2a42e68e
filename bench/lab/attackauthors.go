package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/web"
)

const evilAuthors = 100

// readersToken is that of who may read, where a token is asked for.
const readersToken = "0123456789abcdef0123456789abcdef"

// attackers are those that are no senders: who writes HPAs, who writes files.
func (a *arena) attackers() []assault {
	return []assault{
		{name: "hpas", what: "100 HPAs of 100 namespaces, each with a query that takes all that it may, asked 20 at a time", lasts: 20 * time.Second, do: a.evilHPAs},
		{name: "files", what: "HPA files without end, of 1 GB, and FIFOs in --hpa-dir; standalone", lasts: 10 * time.Second, do: a.evilFiles, files: true},
		{name: "certificate", what: "the ingest port's certificate is a FIFO, garbage, without end; new sidecars come; standalone", lasts: 13 * time.Second, do: a.evilCertificates, files: true},
		{name: "tokens", what: "requests without a token and with wrong ones, 8 at a time: probes need none, everything else does; standalone", lasts: 5 * time.Second, do: a.evilReaders, files: true},
	}
}

// evilHPAs asks for what the authors' HPAs ask for, as often as it can, 20 at a time: four times as
// many as an HPA controller has workers.
func (a *arena) evilHPAs(ctx context.Context, m *subject) error {
	a.evil.Do(func() { a.evilErr = a.writeEvilHPAs(ctx) })
	var all sync.WaitGroup
	for w := range 20 {
		all.Go(func() {
			for i := w; ctx.Err() == nil && a.evilErr == nil; i += 20 {
				path := fmt.Sprintf("https://%s/apis/external.metrics.k8s.io/v1beta1/namespaces/author-%d/prometheus-query?labelSelector=query-name%%3Dx", m.https, i%evilAuthors)
				_, _ = web.Get(ctx, a.client, path) // an answer would be a surprise
			}
		})
	}
	all.Wait()
	return a.evilErr
}

func (a *arena) writeEvilHPAs(ctx context.Context) error {
	queries := []string{
		`count by (pod, response_code) (istio_requests_total) * on () group_left () count(count_over_time(istio_requests_total[50s:1s]))`,
		`sum(label_replace(rate(istio_requests_total[50s:1s]), "a", "$1", "pod", "(.*)"))`,
		`max_over_time(sum(rate(istio_requests_total[50s]))[50s:100ms])`,
		`count(istio_requests_total * on (response_code) group_left () count by (response_code) (istio_requests_total offset 1s))`,
		`sort_desc(max_over_time(max_over_time(istio_requests_total[50s:1s])[50s:1s]))`,
	}
	var errs []error
	for i := range evilAuthors {
		ns := fmt.Sprint("author-", i)
		hpa := &autoscalingv2.HorizontalPodAutoscaler{
			ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: ns, Annotations: map[string]string{"metric-config.external.prometheus-query.prometheus/x": queries[i%len(queries)]}},
			Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
				MaxReplicas: 2, ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "x"},
				Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
					Metric: autoscalingv2.MetricIdentifier{Name: "prometheus-query", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"query-name": "x"}}},
					Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: resource.NewQuantity(1, resource.DecimalSI)},
				}}},
			},
		}
		errs = append(errs, a.namespace(ctx, ns))
		_, err := a.cluster.Client.AutoscalingV2().HorizontalPodAutoscalers(ns).Create(ctx, hpa, metav1.CreateOptions{})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// evilFiles puts into the folder of HPAs what must not be read to its end.
func (a *arena) evilFiles(ctx context.Context, m *subject) error {
	hpas := filepath.Join(m.folder, "hpas")
	err := errors.Join(
		os.Symlink("/proc/self/pagemap", filepath.Join(hpas, "endless.yaml")),
		os.Symlink("/dev/zero", filepath.Join(hpas, "zero.yaml")),
		syscall.Mkfifo(filepath.Join(hpas, "fifo.yaml"), 0o600),
		os.WriteFile(filepath.Join(hpas, "large.yaml"), nil, 0o600),
		os.Truncate(filepath.Join(hpas, "large.yaml"), 1<<30),
	)
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// evilReaders ask for what they may, probes, and for what they may not.
func (a *arena) evilReaders(ctx context.Context, m *subject) error {
	metric, selector := metricOf("compiled")
	asks := map[string]int{
		"/healthz": http.StatusOK, "/livez": http.StatusOK, "/readyz": http.StatusOK, "/metrics": http.StatusUnauthorized, "/debug/hpas": http.StatusUnauthorized,
		"/apis/external.metrics.k8s.io/v1beta1/namespaces/" + victimNamespace + "/" + metric + "?labelSelector=" + url.QueryEscape(selector): http.StatusUnauthorized,
	}
	ask := func(path, authorization string) (int, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+m.https+path, nil)
		if err != nil {
			return 0, err
		}
		if authorization != "" {
			request.Header.Set("Authorization", authorization)
		}
		response, err := a.client.Do(request)
		if err != nil {
			return 0, err
		}
		defer func() { _ = response.Body.Close() }()
		_, err = io.Copy(io.Discard, response.Body)
		return response.StatusCode, err
	}
	errs := make([]error, 8)
	var all sync.WaitGroup
	for w := range errs {
		all.Go(func() {
			for ctx.Err() == nil && errs[w] == nil {
				for path, want := range asks {
					for _, authorization := range []string{"", "Bearer wrong", "Basic " + readersToken} {
						got, err := ask(path, authorization)
						wrong := authorization == "" || want == http.StatusUnauthorized // a wrong token may be refused anywhere
						if err == nil && got != want && wrong && errs[w] == nil {
							errs[w] = fmt.Errorf("%s with authorization %q is answered by %d, not by %d", path, authorization, got, want)
						}
					}
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// evilCertificates puts one thing after the other in the certificate's place, and each second a new
// sidecar has to get in.
func (a *arena) evilCertificates(ctx context.Context, m *subject) error {
	file := filepath.Join(m.folder, "ingest.crt")
	ways := []func(string) error{
		func(path string) error { return syscall.Mkfifo(path, 0o600) },
		func(path string) error { return os.WriteFile(path, []byte("garbage"), 0o600) },
		func(path string) error { return os.Symlink("/dev/zero", path) },
		func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<30)) },
	}
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 2 * time.Second}, Config: &tls.Config{RootCAs: m.authorities, ServerName: serverName, NextProtos: []string{"h2"}}}
	for i := 0; ctx.Err() == nil; i++ {
		if i%3 == 0 && i/3 < len(ways) {
			if err := errors.Join(ways[i/3](file+".new"), os.Rename(file+".new", file)); err != nil {
				return err
			}
		}
		within, cancel := context.WithTimeout(ctx, 2*time.Second)
		c, err := dialer.DialContext(within, "tcp", m.ingest)
		cancel()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("a new sidecar did not get in: %w", err)
		}
		if c != nil {
			_ = c.Close()
		}
		sleep(ctx, time.Second)
	}
	return nil
}
