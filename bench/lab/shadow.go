package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
)

// compared is meshpulse beside KEDA, with KEDA's Prometheus to compare with: what it reports of
// that is held against what a witness saw.
type compared struct {
	*meshpulse
	keda    *keda
	witness *witness
	front   *httptest.Server
	asking  sync.WaitGroup
	cancel  context.CancelFunc

	reports int
	off     int     // counts, over all reports
	wrong   []error // largest differences that are none, and reports that were not to be had
	last    map[string]*told
}

// kedasOwn marks the lanes that have a ScaledObject.
const kedasOwn = "-keda"

// compareEvery is --shadow-interval: what is remembered, 240 comparisons, is longer than the run.
const compareEvery = 5 * time.Second

// shadow runs a step and a sawtooth beside KEDA.
func (l *lab) shadow(ctx context.Context) error {
	s, err := scenario.Load(filepath.Join(l.root, "bench", "lab", "scenarios", "shadow", "shadow.yaml"))
	if err != nil {
		return err
	}
	var x *compared
	const sync = 15 * time.Second
	seen, err := l.runOnce(ctx, s, sync, func(ctx context.Context, c *cluster.Cluster, dir string) (source, error) {
		x, err = startCompared(ctx, l, c, dir, s)
		return x, err
	}, false)
	if err != nil {
		return err
	}
	run := scenario.Run{Scenario: s, HPASync: sync, Boot: seen.boot, Traces: seen.traces}
	run.Judge()
	// Means over lanes would be of both paths.
	of := []string{scenario.SentRequests, scenario.FailedRequests, scenario.GeneratorLate, scenario.BootTime(0).Name}
	run.Measures = slices.DeleteFunc(run.Measures, func(m scenario.Measure) bool { return !slices.Contains(of, m.Name) })
	run.Measures = append(run.Measures, x.measures()...)
	report := scenario.Report{
		Scenario: s, Runs: []scenario.Run{run}, Versions: append(l.versions(), "Prometheus "+prometheusVersion, "KEDA "+kedaVersion),
		Date: time.Now(), Command: "make lab-shadow", More: x.table(),
	}
	fmt.Print(report.Markdown())
	failed := errors.Join(x.wrong...)
	if x.off > 0 {
		failed = errors.Join(failed, fmt.Errorf("shadow: counts of the reports are off by %d", x.off))
	}
	if !report.OK() {
		failed = errors.Join(failed, errors.New("shadow: a check failed"))
	}
	return errors.Join(report.Write(l.results, l.seen()), failed)
}

// startCompared starts KEDA with its Prometheus, the witness before that, and meshpulse, which
// passes to KEDA what is KEDA's.
func startCompared(ctx context.Context, l *lab, c *cluster.Cluster, dir string, s scenario.Scenario) (*compared, error) {
	within, err := withNames(dir)
	if err != nil {
		return nil, err
	}
	x := &compared{keda: &keda{lab: l, cluster: c}, last: map[string]*told{}}
	var gateways []string
	for i := range s.Expanded() {
		gateways = append(gateways, fmt.Sprintf("127.97.255.%d:15000", i+1))
	}
	if err := x.keda.start(ctx, filepath.Join(dir, "keda"), dir, 15*time.Second, gateways); err != nil {
		x.keda.stop()
		return nil, err
	}
	x.witness = &witness{to: x.keda.query, here: x.here, lanes: map[string]*watched{}}
	x.front = httptest.NewServer(x.witness)
	options := beside(x.keda, within)
	options.components = append(options.components, "own-api")
	options.flags = append(options.flags, "--shadow-prometheus="+x.front.URL, "--shadow-interval="+compareEvery.String())
	if x.meshpulse, err = installMeshpulse(ctx, l, c, dir, options); err != nil {
		x.front.Close()
		x.keda.stop()
		return nil, err
	}
	asking, cancel := context.WithCancel(ctx)
	x.cancel = cancel
	x.asking.Go(func() {
		for sleep(asking, time.Minute) {
			x.hold(asking)
		}
	})
	return x, nil
}

// here is what the external metrics API answers, and the replicas that the HPA has. That meshpulse
// has no value is an answer, that the API server cannot be asked is none.
func (x *compared) here(ctx context.Context, hpa *autoscalingv2.HorizontalPodAutoscaler) (*float64, int32, error) {
	now, err := x.cluster.Client.AutoscalingV2().HorizontalPodAutoscalers(hpa.Namespace).Get(ctx, hpa.Name, metav1.GetOptions{})
	if err != nil {
		return nil, 0, err
	}
	value, _, err := answer(ctx, x.cluster, hpa)
	switch {
	case apierrors.ReasonForError(err) != metav1.StatusReasonUnknown:
		return nil, now.Status.CurrentReplicas, nil
	case err != nil:
		return nil, 0, err
	}
	return &value, now.Status.CurrentReplicas, nil
}

// prepare: KEDA's lanes get a ScaledObject, the others the guide's HPA, which is watched.
func (x *compared) prepare(ctx context.Context, hpa *autoscalingv2.HorizontalPodAutoscaler) error {
	if strings.HasSuffix(hpa.Namespace, kedasOwn) {
		return x.keda.prepare(ctx, hpa)
	}
	if err := x.witness.watch(hpa); err != nil {
		return err
	}
	return x.meshpulse.prepare(ctx, hpa)
}

func (x *compared) failed() error { return errors.Join(x.meshpulse.failed(), x.keda.failed()) }

// stop takes the last report before it ends anything.
func (x *compared) stop() {
	x.cancel()
	x.asking.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	x.hold(ctx)
	x.meshpulse.stop()
	x.front.Close()
	x.keda.stop()
}

// hold asks for the report as a user does and holds it against what the witness has seen.
func (x *compared) hold(ctx context.Context) {
	reported, err := x.report(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		x.wrong = append(x.wrong, err)
		return
	}
	x.reports++
	for namespace, r := range reported {
		seen := x.witness.seen(namespace)
		if seen.hpa == nil {
			continue // KEDA's
		}
		counts, err := differs(seen.looks, seen.goal, r)
		x.off += counts
		if err != nil {
			x.wrong = append(x.wrong, fmt.Errorf("shadow: %s: %w", namespace, err))
		}
		slog.Info("shadow", "namespace", namespace, "compared", r.Compared, "agreed", r.Agreed, "decisions", r.Decisions, "counts off", counts, "largest", err)
	}
	x.last = reported
}

// report is what `meshpulse shadow report` says of each HPA's one metric, by namespace.
func (x *compared) report(ctx context.Context) (map[string]*told, error) {
	out, err := exec.CommandContext(ctx, x.lab.meshpulse, "shadow", "report", "-A", "-o", "json", "--kubeconfig="+x.cluster.Kubeconfig).Output()
	if err != nil {
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("meshpulse shadow report: %w", err)
	}
	var list struct {
		Items []struct {
			Metadata metav1.ObjectMeta
			Metrics  []struct{ Shadow *told }
		}
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("meshpulse shadow report: %w", err)
	}
	reported := map[string]*told{}
	for _, item := range list.Items {
		if len(item.Metrics) == 1 && item.Metrics[0].Shadow != nil {
			reported[item.Metadata.Namespace] = item.Metrics[0].Shadow
		}
	}
	return reported, nil
}

// watchedLanes are those whose comparisons are held against what the lab saw.
func (x *compared) watchedLanes() []string { return []string{"step", "sawtooth"} }

func (x *compared) measures() []scenario.Measure {
	none := 0.0
	all := []scenario.Measure{
		{Name: "reports held against what the lab saw", Value: float64(x.reports), Unit: "count"},
		{Name: "sum by which their counts are off", Value: float64(x.off), Unit: "count", Goal: &none, Better: "lower"},
		{Name: "reports or largest differences that are not so", Value: float64(len(x.wrong)), Unit: "count", Goal: &none, Better: "lower"},
	}
	for _, lane := range x.watchedLanes() {
		r, seen := x.last[lane], x.witness.seen(lane)
		all = append(all, scenario.Measure{Name: lane + ": comparisons that the lab could not see", Value: float64(seen.unseen), Unit: "count", Goal: &none, Better: "lower"})
		if r == nil || r.Largest == nil {
			continue
		}
		all = append(all,
			scenario.Measure{Name: lane + ": comparisons", Value: float64(r.Compared), Unit: "count"},
			scenario.Measure{Name: lane + ": of them agree to a tenth", Value: float64(r.Agreed), Unit: "count"},
			scenario.Measure{Name: lane + ": of them would ask for other replicas", Value: float64(r.Decisions), Unit: "count"},
			scenario.Measure{Name: lane + ": largest difference", Value: apart(*r.Largest.Here, *r.Largest.There), Unit: "ratio"})
	}
	return all
}

// table sets the last report beside what the lab saw until then.
func (x *compared) table() string {
	w := &strings.Builder{}
	fmt.Fprint(w, "## The last report beside what the lab saw\n\n| lane | who | compared | agree | other replicas | only here | only there | largest at | here | there | replicas | likely reason |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, lane := range x.watchedLanes() {
		r := x.last[lane]
		if r == nil {
			continue
		}
		seen := x.witness.seen(lane)
		own := tally(seen.looks, seen.goal, r.Newest.At)
		fmt.Fprintf(w, "| %s | report | %s |\n| | lab | %s |\n", lane, r.row(), own.row())
	}
	return w.String()
}

func (t told) row() string {
	text := fmt.Sprintf("%d | %d | %d | %d | %d", t.Compared, t.Agreed, t.Decisions, t.TheirsMissing, t.OursMissing)
	c := t.Largest
	if c == nil {
		return text + " | | | | |"
	}
	return fmt.Sprintf("%s | %s | %.3f | %.3f | %d, %d | %s", text, c.At.UTC().Format("15:04:05.000"), *c.Here, *c.There, c.HereAsks, c.ThereAsks, c.Reason)
}
