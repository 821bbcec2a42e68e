package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
	"github.com/meshpulse/meshpulse/bench/web"
)

// coexistence is meshpulse and KEDA on one APIService: KEDA has it first, meshpulse takes it over
// with --fallback and gives it back by its own script.
type coexistence struct {
	*meshpulse
	keda    *keda
	watched sync.WaitGroup
	cancel  context.CancelFunc
	err     error
	admin   *http.Client

	measures []scenario.Measure
}

const (
	kedaServiceName = "keda-metrics-apiserver"
	// kedaLane is the namespace whose HPA is a ScaledObject.
	kedaLane        = "theirs"
	externalMetrics = "/apis/external.metrics.k8s.io/v1beta1"
	apiServiceName  = "v1beta1.external.metrics.k8s.io"
)

// coexist runs two HPAs of the guides and a ScaledObject on one APIService.
func (l *lab) coexist(ctx context.Context) error {
	s, err := scenario.Load(filepath.Join(l.root, "bench", "lab", "scenarios", "coexist", "coexist.yaml"))
	if err != nil {
		return err
	}
	var x *coexistence
	seen, err := l.runOnce(ctx, s, 15*time.Second, func(ctx context.Context, c *cluster.Cluster, dir string) (source, error) {
		x, err = startCoexistence(ctx, l, c, dir)
		return x, err
	}, false)
	if err != nil {
		return err
	}
	x.watched.Wait()
	run := scenario.Run{Scenario: s, HPASync: 15 * time.Second, Boot: seen.boot, Traces: seen.traces}
	run.Judge()
	run.Measures = append(run.Measures, x.measures...)
	report := scenario.Report{Scenario: s, Runs: []scenario.Run{run}, Versions: l.versions(), Date: time.Now(), Command: "make lab-coexist"}
	fmt.Print(report.Markdown())
	for _, m := range x.measures {
		fmt.Printf("%s: %g %s\n", m.Name, m.Value, m.Unit)
	}
	return errors.Join(report.Write(l.results, l.seen()), x.err)
}

// startCoexistence starts KEDA with rotation of its certificates, then meshpulse, which takes the
// API over as manifests/install.sh does.
func startCoexistence(ctx context.Context, l *lab, c *cluster.Cluster, dir string) (*coexistence, error) {
	within, err := withNames(dir)
	if err != nil {
		return nil, err
	}
	// What KEDA's Prometheus holds does not matter here, so it is one answer.
	asked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[%d,"18.25"]}]}}`, time.Now().Unix())
	}))
	x := &coexistence{keda: &keda{lab: l, cluster: c, rotates: true, within: within, query: asked.URL}}
	if err := x.keda.start(ctx, filepath.Join(dir, "keda"), dir, 5*time.Second, nil); err != nil {
		x.keda.stop()
		return nil, err
	}
	before, err := c.Kubectl(ctx, nil, "get", "apiservice", apiServiceName, "-o", "jsonpath={.spec}")
	if err == nil {
		_, err = c.Kubectl(ctx, nil, "annotate", "apiservice", apiServiceName, "meshpulse.io/replaced-spec="+before)
	}
	if err != nil {
		x.keda.stop()
		return nil, err
	}
	x.meshpulse, err = installMeshpulse(ctx, l, c, dir, beside(x.keda, within))
	if err != nil {
		x.keda.stop()
		return nil, err
	}
	watching, cancel := context.WithCancel(ctx)
	x.cancel, x.admin = cancel, c.AdminClient()
	x.watched.Go(func() { x.err = x.watch(watching) })
	return x, nil
}

// withNames is the command that starts a process which finds KEDA's Services by their names: there
// is no DNS of the cluster outside pods.
func withNames(dir string) (within func(command ...string) []string, err error) {
	hosts := filepath.Join(dir, "hosts")
	names := fmt.Sprintf("127.0.0.1 localhost\n127.0.0.1 keda-operator.keda.svc\n%s %s.keda.svc\n", kedaIP, kedaServiceName)
	if err := os.WriteFile(hosts, []byte(names), 0o644); err != nil {
		return nil, err
	}
	return func(command ...string) []string {
		return append([]string{"unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts}, command...)
	}, nil
}

// beside are the options of a meshpulse that passes to KEDA what is KEDA's.
func beside(k *keda, within func(command ...string) []string) meshpulseOptions {
	return meshpulseOptions{
		components: []string{"fallback"}, within: within,
		flags: []string{"--fallback=" + kedaNamespace + "/" + kedaServiceName, "--fallback-ca-file=" + filepath.Join(k.certificates, "ca.crt")},
	}
}

func (x *coexistence) prepare(ctx context.Context, hpa *autoscalingv2.HorizontalPodAutoscaler) error {
	if hpa.Namespace == kedaLane {
		return x.keda.prepare(ctx, hpa)
	}
	return x.meshpulse.prepare(ctx, hpa)
}

func (x *coexistence) failed() error { return x.meshpulse.failed() }

func (x *coexistence) stop() {
	x.cancel()
	x.watched.Wait()
	x.meshpulse.stop()
	x.keda.stop()
}

func (x *coexistence) add(name string, value float64, unit string, goal float64) {
	x.measures = append(x.measures, scenario.Measure{Name: name, Value: value, Unit: unit, Goal: &goal, Better: "lower"})
	slog.Info("coexist", "measure", name, "value", value, "goal", goal)
	if value > goal {
		x.err = errors.Join(x.err, fmt.Errorf("coexist: %s is %g, at most %g is good", name, value, goal))
	}
}

// Paths of a metric of KEDA's and of one of a guide's.
const (
	theirMetric = externalMetrics + "/namespaces/" + kedaLane + "/s0-prometheus?labelSelector=scaledobject.keda.sh%2Fname%3D"
	ourMetric   = externalMetrics + "/namespaces/guide-1/prometheus-query?labelSelector=query-name%3Dprocessed-requests-per-second"
)

// watch does one thing after the other while the load goes on.
func (x *coexistence) watch(ctx context.Context) error {
	name, err := x.scaledObject(ctx)
	if err != nil {
		return err
	}
	theirs := theirMetric + name
	for _, path := range []string{theirs, ourMetric} {
		if err := x.answers(ctx, path, true); err != nil {
			return err
		}
	}
	for _, part := range []func(context.Context, string) error{x.same, x.fast, x.scaled, x.restarted, x.kedaKilled, x.released} {
		if err := part(ctx, theirs); err != nil {
			return err
		}
	}
	return nil
}

func (x *coexistence) scaledObject(ctx context.Context) (string, error) {
	for {
		name, err := x.keda.cluster.Kubectl(ctx, nil, "-n", kedaLane, "get", "scaledobjects", "-o", "jsonpath={.items[*].metadata.name}")
		if err == nil && name != "" {
			return name, nil
		}
		select {
		case <-ctx.Done():
			return "", cmp.Or(err, ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

// ask asks as kubectl get --raw does.
func (x *coexistence) ask(ctx context.Context, path string) (string, error) {
	return said(ctx, x.admin, x.keda.cluster.Server+path)
}

// said is an answer without its times, which are those of the asking.
func said(ctx context.Context, client *http.Client, url string) (string, error) {
	text, err := web.Get(ctx, client, url)
	if err != nil {
		return "", err
	}
	var list struct {
		Items []map[string]any `json:"items"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return "", err
	}
	for _, item := range list.Items {
		delete(item, "timestamp")
	}
	timeless, err := json.Marshal(list)
	return string(timeless), err
}

// answers waits until a metric has a value, or has none.
func (x *coexistence) answers(ctx context.Context, path string, want bool) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		_, err := x.ask(ctx, path)
		if (err == nil) == want {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: has a value is to be %t: %w", path, want, cmp.Or(err, ctx.Err()))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// directly asks KEDA itself, past the API server and meshpulse, as an administrator.
func (x *coexistence) directly() (*http.Client, error) {
	ca, err := os.ReadFile(filepath.Join(x.keda.certificates, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := x.keda.cluster.AdminClient()
	t := client.Transport.(*http.Transport)
	t.TLSClientConfig = &tls.Config{RootCAs: roots, ServerName: kedaServiceName + ".keda.svc", GetClientCertificate: t.TLSClientConfig.GetClientCertificate}
	return client, nil
}

// same: what the API server answers by way of meshpulse is what KEDA answers.
func (x *coexistence) same(ctx context.Context, theirs string) error {
	client, err := x.directly()
	if err != nil {
		return err
	}
	differ := 0
	const looks = 20
	for range looks {
		// The value may change between the two: KEDA's before and after have to be alike.
		before, err := said(ctx, client, "https://"+kedaIP+theirs)
		if err != nil {
			return err
		}
		via, err := x.ask(ctx, theirs)
		if err != nil {
			return err
		}
		after, err := said(ctx, client, "https://"+kedaIP+theirs)
		if err != nil {
			return err
		}
		if via != before && via != after {
			differ++
			slog.Warn("coexist: another answer", "via", via, "direct", before)
		}
		time.Sleep(time.Second)
	}
	x.add(fmt.Sprintf("answers of %d that are not KEDA's own", looks), float64(differ), "answers", 0)
	return nil
}

// fast: what meshpulse adds to an answer of KEDA's.
func (x *coexistence) fast(ctx context.Context, theirs string) error {
	client, err := x.directly()
	if err != nil {
		return err
	}
	var direct, via []time.Duration
	const calls = 1000
	for range calls { // in turns, so that both have the same machine
		for _, one := range []struct {
			client *http.Client
			url    string
			took   *[]time.Duration
		}{{client, "https://" + kedaIP + theirs, &direct}, {x.admin, "https://" + serviceIP + theirs, &via}} {
			start := time.Now()
			if _, err := web.Get(ctx, one.client, one.url); err != nil {
				return err
			}
			*one.took = append(*one.took, time.Since(start))
		}
	}
	slices.Sort(direct)
	slices.Sort(via)
	at := func(all []time.Duration, q float64) float64 {
		return float64(all[int(q*float64(len(all)-1))]) / float64(time.Millisecond)
	}
	x.add("p50 that meshpulse adds to KEDA's answer", at(via, .5)-at(direct, .5), "ms", 5)
	x.add("p99 that meshpulse adds to KEDA's answer", at(via, .99)-at(direct, .99), "ms", 5)
	slog.Info("coexist: KEDA itself", "p50ms", at(direct, .5), "p99ms", at(direct, .99))
	return nil
}

// scaled: whoever answers, 18 requests a second against a target of 10 are two replicas.
func (x *coexistence) scaled(ctx context.Context, _ string) error {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	for {
		list, err := x.keda.cluster.Client.AutoscalingV2().HorizontalPodAutoscalers(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		done := 0
		for _, h := range list.Items {
			if h.Status.DesiredReplicas == 2 && h.Status.CurrentReplicas == 2 {
				done++
			}
		}
		if len(list.Items) == 3 && done == 3 {
			x.add("of the 3 HPAs, those that have not scaled to 2", 0, "HPAs", 0)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d HPAs have scaled to 2 replicas: %w", done, len(list.Items), ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

// restarted: while meshpulse starts again nothing of ours is answered by KEDA, which would say that
// it has no such metric.
func (x *coexistence) restarted(ctx context.Context, theirs string) error {
	asking, stop := context.WithCancel(ctx)
	wrong, asked := 0, 0
	var all sync.WaitGroup
	all.Go(func() {
		for asking.Err() == nil {
			_, err := x.ask(asking, ourMetric)
			asked++
			if err != nil && strings.Contains(err.Error(), "no matching metrics") {
				wrong++
			}
			_, _ = x.ask(asking, theirs)
			time.Sleep(100 * time.Millisecond)
		}
	})
	err := x.restart(ctx)
	if err == nil {
		err = errors.Join(x.answers(ctx, theirs, true), x.answers(ctx, ourMetric, true))
	}
	stop()
	all.Wait()
	x.add(fmt.Sprintf("answers of KEDA's to what is meshpulse's, of %d during a restart", asked), float64(wrong), "answers", 0)
	return err
}

// kedaKilled: its metric errors, ours go on.
func (x *coexistence) kedaKilled(ctx context.Context, theirs string) error {
	x.keda.adapter.Kill()
	if err := x.answers(ctx, theirs, false); err != nil {
		return err
	}
	failed, answered := 0, 0
	const looks = 30
	for range looks {
		if _, err := x.ask(ctx, ourMetric); err != nil {
			failed++
			slog.Warn("coexist: ours fails", "err", err)
		}
		if _, err := x.ask(ctx, theirs); err == nil {
			answered++
		}
		time.Sleep(500 * time.Millisecond)
	}
	x.add(fmt.Sprintf("of %d questions, those to meshpulse's own that fail while KEDA is away", looks), float64(failed), "answers", 0)
	x.add("and those to KEDA's that have a value", float64(answered), "answers", 0)
	if err := x.keda.startAdapter(ctx); err != nil {
		return err
	}
	return x.answers(ctx, theirs, true)
}

// released: manifests/install.sh gives the API back, and KEDA's metric is asked for all the while.
func (x *coexistence) released(ctx context.Context, theirs string) error {
	bin := filepath.Join(x.dir, "bin")
	script := fmt.Sprintf("#!/bin/sh\nexec %q kubectl --kubeconfig=%q \"$@\"\n", x.lab.controlplane, x.keda.cluster.Kubeconfig)
	if err := errors.Join(os.MkdirAll(bin, 0o755), os.WriteFile(filepath.Join(bin, "kubectl"), []byte(script), 0o755)); err != nil {
		return err
	}
	asking, stop := context.WithCancel(ctx)
	failed, asked := 0, 0
	var all sync.WaitGroup
	all.Go(func() {
		for asking.Err() == nil {
			if _, err := x.ask(ctx, theirs); err != nil {
				failed++
				slog.Warn("coexist: while the API is given back", "err", err)
			}
			asked++
			time.Sleep(time.Second)
		}
	})
	time.Sleep(5 * time.Second)
	cmd := exec.CommandContext(ctx, filepath.Join(x.lab.root, "manifests", "install.sh"), "--release-apiservice")
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	slog.Info("coexist: install.sh --release-apiservice", "says", string(out))
	time.Sleep(10 * time.Second)
	stop()
	all.Wait()
	if err != nil {
		return fmt.Errorf("install.sh --release-apiservice: %w: %s", err, out)
	}
	owner, err := x.keda.cluster.Kubectl(ctx, nil, "get", "apiservice", apiServiceName, "-o", "jsonpath={.spec.service.namespace}/{.spec.service.name} {.metadata.annotations}")
	if err != nil {
		return err
	}
	if !strings.HasPrefix(owner, kedaNamespace+"/"+kedaServiceName) || strings.Contains(owner, "replaced-spec") {
		return fmt.Errorf("after --release-apiservice the API is %s's", owner)
	}
	x.add(fmt.Sprintf("of %d questions to KEDA's while the API is given back, those that fail", asked), float64(failed), "answers", 1)
	return nil
}
