package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/identity"
	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
	"github.com/meshpulse/meshpulse/bench/load"
)

var webClient = &http.Client{Timeout: 10 * time.Second}

// mtlsRun is a run of the scenario: what is done one after the other, and what was seen.
type mtlsRun struct {
	*mtlsMesh
	measures []scenario.Measure
	notes    []string
}

// mtls runs sidecars that prove themselves, lets certificates, roots and authorities go through
// what they may, and counts what was lost.
func (l *lab) mtls(ctx context.Context) error {
	dir, err := l.runDir("mtls")
	if err != nil {
		return err
	}
	c, err := cluster.Boot(ctx, cluster.Config{Binary: l.controlplane, Dir: dir, HPASync: 15 * time.Second})
	if err != nil {
		return err
	}
	defer c.Stop()
	var roots [2]*identity.Authority
	for i := range roots {
		if roots[i], err = identity.NewAuthority(fmt.Sprint("mesh-", i)); err != nil {
			return err
		}
	}
	m, err := l.startMTLS(ctx, c, dir, roots[0])
	if err != nil {
		return err
	}
	defer m.stop()
	slog.Info("mtls: all pods are ready", "logs", dir)
	renewing, stop := context.WithCancel(ctx)
	var renewals sync.WaitGroup
	defer renewals.Wait()
	defer stop()
	renewals.Go(func() { m.renewUntil(renewing) })
	r := &mtlsRun{mtlsMesh: m}
	err = r.whileNothingIsLost(ctx, roots[0], roots[1])
	for _, part := range []func(context.Context) error{r.hostile, r.agentsAway, r.authorityAway, r.strict} {
		if err == nil {
			err = part(ctx)
		}
	}
	if err != nil {
		return err
	}
	if err := r.write(l); err != nil {
		return err
	}
	if missed := scenario.Missed(r.measures); len(missed) > 0 {
		return fmt.Errorf("mtls: missed: %s", strings.Join(missed, "; "))
	}
	return nil
}

func (r *mtlsRun) add(name string, value float64, unit string, goal float64, better string) {
	r.measures = append(r.measures, scenario.Measure{Name: name, Value: value, Unit: unit, Goal: &goal, Better: better})
	slog.Info("mtls", "measure", name, "value", value, "goal", goal)
}

func (r *mtlsRun) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
	slog.Info("mtls", "note", r.notes[len(r.notes)-1])
}

// under sends load to every pod while do does something. When it returns, all that was counted has
// been flushed.
func (r *mtlsRun) under(ctx context.Context, do func(ctx context.Context) error) error {
	var targets []string
	for _, s := range r.sidecarsOf(provenNamespace, halfNamespace) {
		host, _, _ := net.SplitHostPort(s.Admin)
		targets = append(targets, net.JoinHostPort(host, "8080"))
	}
	slices.Sort(targets)
	g := load.Start(ctx, load.Options{
		Targets: targets, Profile: load.Profile{{For: metav1.Duration{Duration: time.Hour}, RPS: float64(mtlsRate * len(targets))}}, Remember: time.Second,
	})
	err := do(ctx)
	g.Stop()
	sleep(ctx, 4*mtlsFlush)
	return err
}

// lost is how many requests of a namespace's sidecars have come in no flush, since their baseline:
// a histogram is of its flush alone, so what is missing of it is lost. counted is by how much
// counters differ.
func (r *mtlsRun) lost(ctx context.Context, namespace string, baseline map[string]int64, only func(key string) bool) (lost, counted, of int64, err error) {
	truth, err := r.agent.Requests(ctx)
	if err != nil {
		return 0, 0, 0, err
	}
	timed, err := r.totals(ctx, namespace, "timed")
	if err != nil {
		return 0, 0, 0, err
	}
	requests, err := r.totals(ctx, namespace, "counted")
	if err != nil {
		return 0, 0, 0, err
	}
	for key, n := range truth {
		pod, ok := strings.CutPrefix(key, namespace+"/")
		if !ok || only != nil && !only(key) {
			continue
		}
		of += n - baseline[key]
		lost += n - baseline[key] - timed[pod]
		counted += max(n-requests[pod], requests[pod]-n)
	}
	return lost, counted, of, nil
}

// whileNothingIsLost renews certificates fifteen times in half a minute, lets connections be closed
// as their certificates end, and changes the root.
func (r *mtlsRun) whileNothingIsLost(ctx context.Context, before, after *identity.Authority) error {
	proven := r.sidecarsOf(provenNamespace)
	var made int64
	sleep(ctx, 10*mtlsFlush) // until all have connected: what is lost before is not a renewal's
	err := r.under(ctx, func(ctx context.Context) error {
		for range 15 {
			if err := r.renew(); err != nil {
				return err
			}
			sleep(ctx, 2*time.Second)
		}
		sleep(ctx, 150*time.Second)
		for _, s := range proven {
			n, err := r.connections(ctx, s)
			if err != nil {
				return err
			}
			made += n - 1
		}
		r.use(before, before, after)
		sleep(ctx, mtlsLife) // until both are trusted by all
		r.use(after, before, after)
		if err := r.renew(); err != nil {
			return err
		}
		sleep(ctx, mtlsLife+mtlsLife/2) // until nobody has one of the old
		r.use(after, after)
		sleep(ctx, mtlsLife)
		return nil
	})
	if err != nil {
		return err
	}
	lost, counted, of, err := r.lost(ctx, provenNamespace, nil, nil)
	if err != nil {
		return err
	}
	r.note("%d requests to %d sidecars that prove themselves, over %d renewals of each certificate, %d connections closed as their certificates ended, and a change of the root", of, len(proven), r.renewals, made)
	r.add("connections closed as their certificates ended", float64(made), "count", 10, "higher")
	r.add("renewals of each certificate", float64(r.renewals), "count", 15, "higher")
	r.add("requests whose flush was lost over renewals, closes and a change of the root", float64(lost), "count", 0, "lower")
	r.add("by how much the counters differ", float64(counted), "count", 0, "lower")
	lost, counted, of, err = r.lost(ctx, halfNamespace, nil, nil)
	if err != nil {
		return err
	}
	r.note("beside them %d requests to %d sidecars of which half are plaintext, on the same port", of, halfPods)
	r.add("permissive, half of the sidecars plaintext: requests whose flush was lost", float64(lost), "count", 0, "lower")
	r.add("permissive, half of the sidecars plaintext: by how much the counters differ", float64(counted), "count", 0, "lower")
	return r.refused()
}

// refused looks whether a sidecar has refused what its agent gave it.
func (r *mtlsRun) refused() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, a := range r.agents {
		if why := a.Refused(); why != "" {
			return fmt.Errorf("sidecar of %s refuses its secret: %s", key, why)
		}
	}
	return nil
}

// agentsAway lets the sidecars' certificates end, and renews them then.
func (r *mtlsRun) agentsAway(ctx context.Context) error {
	return r.under(ctx, func(ctx context.Context) error {
		r.hold(true)
		before, err := r.silent(ctx, "sidecars' certificates end: sidecars that go on")
		if err != nil {
			return err
		}
		r.hold(false)
		if err := r.renew(); err != nil {
			return err
		}
		took, err := r.back(ctx, before, 30*time.Second)
		r.add("sidecars' certificates are renewed after their end: all report again after", took.Seconds(), "s", 2*mtlsFlush.Seconds(), "lower")
		return err
	})
}

// authorityAway lets all certificates end, meshpulse's own too, and come back.
func (r *mtlsRun) authorityAway(ctx context.Context) error {
	return r.under(ctx, func(ctx context.Context) error {
		r.hold(true)
		r.service.Stop()
		before, err := r.silent(ctx, "the authority is away until all certificates end: sidecars that go on")
		if err != nil {
			return err
		}
		r.hold(false)
		if _, err := r.service.Start(); err != nil {
			return err
		}
		if err := r.renew(); err != nil {
			return err
		}
		// meshpulse asks anew every five seconds where it has no certificate that lasts; the
		// sidecars wait for that.
		const pause = 15 * time.Second
		took, err := r.back(ctx, before, 10*pause)
		r.add("the authority is back: all report again after", took.Seconds(), "s", pause.Seconds(), "lower")
		return err
	})
}

// silent waits until no certificate is valid any more, and looks whether anything comes still. It
// returns the totals then.
func (r *mtlsRun) silent(ctx context.Context, what string) (map[string]int64, error) {
	sleep(ctx, mtlsLife+mtlsLife/4)
	before, err := r.totals(ctx, provenNamespace, "timed")
	if err != nil { // all have turned stale
		before = map[string]int64{}
	}
	sleep(ctx, 3*mtlsFlush)
	after, err := r.totals(ctx, provenNamespace, "timed")
	going := 0
	for pod, n := range after {
		if err == nil && n > before[pod] {
			going++
		}
	}
	r.add(what, float64(going), "count", 0, "lower")
	return before, ctx.Err()
}

// back waits until every pod of the proven has counted more than before.
func (r *mtlsRun) back(ctx context.Context, before map[string]int64, limit time.Duration) (time.Duration, error) {
	for begin := time.Now(); ; {
		now, err := r.totals(ctx, provenNamespace, "timed")
		come := 0
		for pod, n := range now {
			if n > before[pod] {
				come++
			}
		}
		took := time.Since(begin)
		if err == nil && come == provenPods {
			return took, nil
		}
		if took > limit || !sleep(ctx, 50*time.Millisecond) {
			return took, errors.Join(err, fmt.Errorf("%d of %d sidecars are back", come, provenPods))
		}
	}
}

// strict starts meshpulse anew, first with one namespace that has to prove itself, then with all.
func (r *mtlsRun) strict(ctx context.Context) error {
	base := slices.Clone(r.meshpulse.options.flags)
	for _, step := range []struct {
		name, flag string
		plaintext  bool // of the half goes on
	}{
		{"one namespace strict", "--ingest-strict-namespaces=" + provenNamespace, true},
		{"all strict", "--ingest-mtls=strict", false},
	} {
		r.meshpulse.args = append(slices.DeleteFunc(r.meshpulse.args, func(a string) bool { return strings.HasPrefix(a, "--ingest-strict") }), step.flag)
		if err := r.meshpulse.restart(ctx); err != nil {
			return err
		}
		sleep(ctx, 10*mtlsFlush) // until all have come back; nothing is counted meanwhile
		baseline, err := r.agent.Requests(ctx)
		if err != nil {
			return err
		}
		if err := r.under(ctx, func(ctx context.Context) error { sleep(ctx, 30*time.Second); return nil }); err != nil {
			return err
		}
		lost, _, of, err := r.lost(ctx, provenNamespace, baseline, nil)
		if err != nil {
			return err
		}
		r.note("%s: %d requests to sidecars that prove themselves", step.name, of)
		r.add(step.name+": requests of the proven whose flush was lost", float64(lost), "count", 0, "lower")
		lost, _, of, err = r.lost(ctx, halfNamespace, baseline, func(key string) bool { return !r.proves(key) })
		if err != nil {
			return err
		}
		if step.plaintext {
			r.add(step.name+": requests of the plaintext of other namespaces whose flush was lost", float64(lost), "count", 0, "lower")
		} else {
			r.add(step.name+": requests of the plaintext that count", float64(of-lost), "count", 0, "lower")
		}
	}
	r.meshpulse.options.flags = base
	return nil
}

func (r *mtlsRun) write(l *lab) error {
	text := &strings.Builder{}
	fmt.Fprintf(text, "\n# mtls\n\nSidecars that prove themselves to the ingest port: stock Envoys with the bootstrap that Istio renders for ISTIO_MUTUAL, "+
		"certificates of %s over SDS, meshpulse's own from the same authority; flushes of %s, %d requests a second each.\n\n`make lab-mtls`, %s; %s\n\n| measure | value | goal |\n|---|---|---|\n",
		mtlsLife, mtlsFlush, mtlsRate, time.Now().UTC().Format("2006-01-02 15:04 MST"), strings.Join(l.versions(), ", "))
	rows := measured(text, "mtls: ", r.measures, r.notes)
	fmt.Fprint(text, "\nA flush that is lost is told by durations: counters go on at the next one, while a histogram is of its flush alone. "+
		"So the requests that the histograms have are held against what each Envoy has counted.\n")
	fmt.Print(text.String())
	return errors.Join(
		os.MkdirAll(l.results, 0o755),
		scenario.WriteRows(filepath.Join(l.results, "mtls.json"), rows),
		os.WriteFile(filepath.Join(l.results, "mtls.md"), []byte(text.String()), 0o644),
	)
}

// measured writes the lines of a table and the notes below it, and returns the rows of the results.
func measured(text *strings.Builder, of string, measures []scenario.Measure, notes []string) (rows []scenario.Row) {
	for _, m := range measures {
		rows = append(rows, scenario.RowOf(of, m))
		fmt.Fprintf(text, "| %s | %s | %s |\n", m.Name, m.Text(), scenario.GoalText(m))
	}
	fmt.Fprintln(text)
	for _, n := range notes {
		fmt.Fprintf(text, "- %s.\n", n)
	}
	return rows
}
