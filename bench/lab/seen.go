package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/attack"
	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
)

// What tells of trouble while there is some: the alerts as they are installed, in a real Prometheus
// that scrapes two replicas as the PodMonitor has it, and events on HPAs, which an API server
// forgets after a while.

const (
	// seenTTL is how long the API server keeps an event: little more than the ten minutes after
	// which meshpulse renews one, so that two of it are a quarter of the default's two hours.
	seenTTL = 12 * time.Minute
	// seenHold is meshpulse's --hold: MuteSidecars is told of a sidecar that is silent for longer.
	seenHold = time.Minute
	// seenSeries is meshpulse's --max-series-per-pod: a pod of the crowded lane sends more.
	seenSeries = 20
)

// Lanes of it. In each the pods' sidecars are bench/attack's, of an exact pace.
const (
	muteLane      = "mute"      // one sidecar falls silent while its pod lives
	contestedLane = "contested" // somebody else reports as one of its pods
	crowdedLane   = "crowded"   // a pod has more series than it may
)

// seenHPA is a lane's, whose pods receive 28 requests a second: it wants the three that there are.
const seenHPA = `apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: podinfo
  namespace: NAMESPACE
  annotations:
    metric-config.external.prometheus-query.prometheus/requests: |
      sum(rate(istio_requests_total{reporter="destination",destination_workload="podinfo",destination_workload_namespace="NAMESPACE"}[1m]))
spec:
  minReplicas: 1
  maxReplicas: 3
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: podinfo}
  metrics:
  - type: External
    external:
      metric: {name: prometheus-query, selector: {matchLabels: {query-name: requests}}}
      target: {type: AverageValue, averageValue: "10"}
`

// seenRun is a run: two replicas, three lanes, a Prometheus, and what was seen.
type seenRun struct {
	lab     *lab
	cluster *cluster.Cluster
	pair    *pair
	nodes   *nodes
	alerts  *alerts
	stands  time.Duration // how long events have to stand
	version []string      // of the programs, as the run begins

	measures []scenario.Measure
	notes    []string
}

// seenPart is one of the run's, by a name to try it alone.
type seenPart struct {
	name string
	run  func(*seenRun, context.Context) error
}

func seenParts() []seenPart {
	return []seenPart{{"deaf", (*seenRun).deaf}, {"away", (*seenRun).away}, {"lasting", (*seenRun).lasting}}
}

// seenAll lets troubles happen and looks which alerts and events tell of them. What was seen is
// written where all parts were run at their full length.
func (l *lab) seenAll(ctx context.Context, stands time.Duration, only []string) error {
	parts := slices.DeleteFunc(seenParts(), func(p seenPart) bool { return len(only) > 0 && !slices.Contains(only, p.name) })
	if len(parts) == 0 {
		return fmt.Errorf("seen has no part %s: there are deaf, away and lasting", strings.Join(only, ", "))
	}
	dir, err := l.runDir("seen")
	if err != nil {
		return err
	}
	c, err := cluster.Boot(ctx, cluster.Config{Binary: l.controlplane, Dir: dir, EventTTL: seenTTL})
	if err != nil {
		return err
	}
	defer c.Stop()
	r := &seenRun{lab: l, cluster: c, stands: stands, version: l.versions()}
	began := time.Now()
	if r.pair, err = installPair(ctx, l, c, dir, meshpulseOptions{
		components: []string{"own-api"}, flags: []string{"--hold=" + seenHold.String(), fmt.Sprint("--max-series-per-pod=", seenSeries)},
	}); err != nil {
		return err
	}
	defer r.pair.stop()
	prometheus, err := startScraping(ctx, l, c, dir, r.pair)
	if err != nil {
		return err
	}
	defer prometheus.Kill()
	r.alerts = &alerts{prometheus: prometheus, began: began, spans: map[string][]span{}}
	background, stop := context.WithCancel(ctx)
	var others sync.WaitGroup
	defer others.Wait()
	defer stop()
	others.Go(func() { r.alerts.watch(background) })
	if err := r.setUp(ctx, background, &others); err != nil {
		return err
	}
	slog.Info("seen: all pods report", "logs", dir)
	for _, p := range parts {
		slog.Info("seen", "part", p.name)
		if err := p.run(r, ctx); err != nil {
			return fmt.Errorf("part %s: %w", p.name, err)
		}
	}
	r.judgeOthers()
	whole := len(parts) == len(seenParts()) && stands >= 2*seenTTL
	if err := r.write(whole, time.Since(began)); err != nil {
		return err
	}
	if missed := scenario.Missed(r.measures); len(missed) > 0 {
		return fmt.Errorf("seen: missed: %s", strings.Join(missed, "; "))
	}
	return nil
}

// setUp makes the lanes and lets their sidecars report; it returns when both replicas are ready,
// the HPAs of the lanes have values, and everything has been scraped twice.
func (r *seenRun) setUp(ctx, background context.Context, others *sync.WaitGroup) error {
	r.nodes = &nodes{client: r.cluster.Client, namespaces: []string{muteLane, contestedLane, crowdedLane}}
	sidecars := map[string]*attack.Sidecars{}
	for namespace, pods := range map[string]int32{muteLane: 3, contestedLane: 3, crowdedLane: 1} {
		sidecars[namespace] = &attack.Sidecars{Target: r.pair.sink(), Series: 4, PerSecond: 28}
		_, err := r.cluster.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		d := deployment(scenario.Lane{Namespace: namespace, Replicas: pods})
		if _, err := r.cluster.Client.AppsV1().Deployments(namespace).Create(ctx, d, metav1.CreateOptions{}); err != nil {
			return err
		}
		if namespace == crowdedLane { // its samples are what matters
			continue
		}
		if err := r.cluster.Apply(ctx, []byte(strings.ReplaceAll(seenHPA, "NAMESPACE", namespace))); err != nil {
			return err
		}
	}
	others.Go(func() {
		r.nodes.report(background, func(namespace string) *attack.Sidecars { return sidecars[namespace] })
	})
	return r.until(ctx, 5*time.Minute, "both replicas are ready, the lanes' HPAs have values, and all has been scraped", func() bool {
		if !r.pair.api.leads(0) || !r.pair.api.leads(1) || !r.scaled(ctx, muteLane) || !r.scaled(ctx, contestedLane) {
			return false
		}
		scrapes, err := r.alerts.prometheus.Value(ctx, "min(sum_over_time(up[5m]))")
		return err == nil && scrapes >= 2
	})
}

// scaled says whether a lane's HPA has a value and wants the pods that there are.
func (r *seenRun) scaled(ctx context.Context, namespace string) bool {
	h, err := r.cluster.Client.AutoscalingV2().HorizontalPodAutoscalers(namespace).Get(ctx, workload, metav1.GetOptions{})
	return err == nil && len(h.Status.CurrentMetrics) > 0 && h.Status.CurrentMetrics[0].External != nil && h.Status.DesiredReplicas == 3
}

// until waits for something; what ends by itself meanwhile, or that it does not come, is an error.
func (r *seenRun) until(ctx context.Context, limit time.Duration, what string, done func() bool) error {
	for end := time.Now().Add(limit); !done(); {
		if err := errors.Join(r.cluster.Failed(), r.pair.failed(), r.alerts.prometheus.Ended()); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: %s, within %s", errNotSeen, what, limit)
		}
		if !sleep(ctx, time.Second) {
			return ctx.Err()
		}
	}
	return nil
}

// errNotSeen is wrapped by what until returns when its time is over.
var errNotSeen = errors.New("not seen")

// deaf: the API server is killed. Both replicas hear nothing any more, and are scraped all the
// same.
func (r *seenRun) deaf(ctx context.Context) error {
	var lost float64
	all, err := r.suffer(ctx, trouble{
		what:  "the API server is killed",
		begin: func(context.Context) error { r.cluster.KillAPIServer(); return nil },
		end: func(ctx context.Context) (err error) {
			lost, err = r.alerts.prometheus.Value(ctx, scrapesLost)
			return errors.Join(err, r.cluster.RestartAPIServer(ctx))
		},
		tells: []telling{{"MeshpulseWatchDeaf", 4 * time.Minute, 2 * time.Minute}},
	})
	r.measures = append(r.measures, all...)
	none := 0.0
	r.measures = append(r.measures, scenario.Measure{Name: "scrapes of meshpulse that fail meanwhile", Value: lost, Unit: "count", Goal: &none, Better: "lower"})
	return err
}

// away: both replicas are killed.
func (r *seenRun) away(ctx context.Context) error {
	all, err := r.suffer(ctx, trouble{
		what:  "both replicas are killed",
		begin: func(context.Context) error { r.pair.kill(0); r.pair.kill(1); return nil },
		end:   func(context.Context) error { return errors.Join(r.pair.launch(0), r.pair.launch(1)) },
		tells: []telling{{"MeshpulseAPIServiceDown", 7 * time.Minute, 4 * time.Minute}, {"MeshpulseAbsent", 7 * time.Minute, 2 * time.Minute}},
	})
	r.measures = append(r.measures, all...)
	if err != nil {
		return err
	}
	return r.until(ctx, 4*time.Minute, "both replicas are ready", func() bool { return r.pair.api.leads(0) && r.pair.api.leads(1) })
}

// write prints what was seen, and leaves it with the project where the run was a whole one.
func (r *seenRun) write(whole bool, took time.Duration) error {
	text := &strings.Builder{}
	fmt.Fprintf(text, "\n# What tells of trouble\n\nAlerts as they are installed (`manifests/components/alerts`), none of their times shortened, in a real Prometheus that scrapes two replicas every %s "+
		"with the token and the rights of the PodMonitor; events on HPAs, of which the API server keeps one for %s (by default an hour) after its last renewal.\n\n"+
		"`make lab-seen`, %s, %s; %s\n\n| measure | value | goal |\n|---|---|---|\n",
		seenScrape, seenTTL, time.Now().UTC().Format("2006-01-02 15:04 MST"), took.Round(time.Minute), strings.Join(r.version, ", "))
	rows := measured(text, "seen: ", r.measures, r.notes)
	fmt.Print(text.String())
	if !whole {
		return nil
	}
	return errors.Join(
		os.MkdirAll(r.lab.results, 0o755),
		scenario.WriteRows(filepath.Join(r.lab.results, "seen.json"), rows),
		os.WriteFile(filepath.Join(r.lab.results, "seen.md"), []byte(text.String()), 0o644),
	)
}
