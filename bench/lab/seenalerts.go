package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/proc"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
	"github.com/meshpulse/meshpulse/bench/prometheus"
)

const (
	// seenScrape is the PodMonitor's interval, and the Prometheus operator's for rules.
	seenScrape = 30 * time.Second
	// seenPrometheus is what the PodMonitor makes of each replica, and what a cluster has for the
	// API server.
	seenPrometheus = `global: {scrape_interval: %[1]s, evaluation_interval: %[1]s}
rule_files: [%[2]q]
scrape_configs:
- job_name: meshpulse
  scheme: https
  authorization: {credentials_file: %[3]q}
  tls_config: {ca_file: %[4]q, server_name: %[5]q}
  static_configs: [{targets: [%[6]q, %[7]q]}]
- job_name: apiserver
  scheme: https
  tls_config: {ca_file: %[4]q, cert_file: %[8]q, key_file: %[9]q}
  static_configs: [{targets: [%[10]q]}]
`
	// scrapesLost asks how many scrapes of meshpulse have failed of late.
	scrapesLost = `sum(count_over_time(up{job="meshpulse"}[3m]) - sum_over_time(up{job="meshpulse"}[3m]))`
)

// startScraping starts a Prometheus with the alerts that are installed.
func startScraping(ctx context.Context, l *lab, c *cluster.Cluster, dir string, p *pair) (*prometheus.Server, error) {
	file := func(name string) string { return filepath.Join(dir, name) }
	read := func(component, name string) ([]byte, error) {
		return os.ReadFile(filepath.Join(l.root, "manifests", "components", component, name))
	}
	object, err := read("alerts", "prometheusrule.yaml")
	if err != nil {
		return nil, err
	}
	var rule struct{ Spec map[string]any }
	if err := yaml.Unmarshal(object, &rule); err != nil {
		return nil, err
	}
	rules, err := yaml.Marshal(rule.Spec)
	if err != nil {
		return nil, err
	}
	rights, err := read("pod-monitor", "rbac.yaml")
	if err != nil {
		return nil, err
	}
	ports, err := cluster.FreePorts(1)
	err = errors.Join(err,
		os.WriteFile(file("rules.yaml"), rules, 0o644),
		os.WriteFile(file("ca.crt"), c.CA.PEM, 0o644),
		c.CA.WriteFiles(dir, "scraper", "lab-scraper", []string{"system:masters"}, nil), // of the API server alone
		c.Apply(ctx, rights),
	)
	if err == nil {
		err = writeToken(ctx, c, "meshpulse-observer", "", file("token"))
	}
	if err != nil {
		return nil, err
	}
	return prometheus.Start(ctx, prometheus.Options{
		Binary: l.peer("prometheus", prometheusVersion), Dir: file("prometheus"), Address: "127.0.0.1:" + strconv.Itoa(ports[0]),
		Config: fmt.Sprintf(seenPrometheus, seenScrape, file("rules.yaml"), file("token"), file("ca.crt"), serverName,
			p.api.to(0), p.api.to(1), file("scraper.crt"), file("scraper.key"), strings.TrimPrefix(c.Server, "https://")),
	})
}

// span is a time during which an alert fired; to is zero while it does.
type span struct{ from, to time.Time }

// alerts are those that fire, as Prometheus tells it. It is safe for concurrent use.
type alerts struct {
	prometheus *prometheus.Server
	began      time.Time

	mu       sync.Mutex
	spans    map[string][]span
	expected []string // which a trouble was to make fire
}

// watch asks every two seconds, until the context ends.
func (a *alerts) watch(ctx context.Context) {
	proc.Every(ctx, 2*time.Second, func() {
		names, err := a.prometheus.Firing(ctx)
		if err != nil {
			return // that it has ended is noticed elsewhere
		}
		a.saw(time.Now(), names)
	})
}

// saw takes the alerts that fire at a time into account.
func (a *alerts) saw(at time.Time, names []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, spans := range a.spans {
		if last := &spans[len(spans)-1]; last.to.IsZero() && !slices.Contains(names, name) {
			last.to = at
			slog.Info("alert is over", "name", name, "after", at.Sub(a.began).Round(time.Second))
		}
	}
	for _, name := range names {
		if spans := a.spans[name]; len(spans) == 0 || !spans[len(spans)-1].to.IsZero() {
			a.spans[name] = append(spans, span{from: at})
			slog.Info("alert fires", "name", name, "after", at.Sub(a.began).Round(time.Second))
		}
	}
}

// expect notes that a trouble is to make an alert fire.
func (a *alerts) expect(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expected = append(a.expected, name)
}

// fired is when an alert first fired after a time, false if it has not.
func (a *alerts) fired(name string, since time.Time) (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.spans[name] {
		if !s.from.Before(since) {
			return s.from, true
		}
	}
	return time.Time{}, false
}

// over is when an alert fired last, false while it does.
func (a *alerts) over(name string) (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	spans := a.spans[name]
	if len(spans) == 0 {
		return time.Time{}, false
	}
	last := spans[len(spans)-1]
	return last.to, !last.to.IsZero()
}

// others are the alerts that fired and were not to, with when they did.
func (a *alerts) others() (all []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, spans := range a.spans {
		if !slices.Contains(a.expected, name) {
			all = append(all, fmt.Sprintf("%s fired %s after the start and had no trouble to tell of", name, spans[0].from.Sub(a.began).Round(time.Second)))
		}
	}
	slices.Sort(all)
	return all
}

// telling is an alert that is to tell of a trouble: how long after its begin it has to fire at
// most, and how long after its end it may. A rule's own time, two scrapes and evaluations, and what
// the numbers themselves take to show it make the first.
type telling struct {
	alert       string
	fires, over time.Duration
}

// trouble is something that goes wrong until its alerts have fired.
type trouble struct {
	what       string
	begin, end func(context.Context) error
	tells      []telling
}

// suffer lets a trouble last until its alerts have fired, then until they are over, and returns how
// long each took. One that was never seen is +Inf.
func (r *seenRun) suffer(ctx context.Context, t trouble) (all []scenario.Measure, err error) {
	began := time.Now()
	slog.Info("trouble", "what", t.what)
	for _, tell := range t.tells {
		r.alerts.expect(tell.alert)
	}
	if err := t.begin(ctx); err != nil {
		return nil, err
	}
	limit := 2 * time.Minute
	for _, tell := range t.tells {
		limit = max(limit, tell.fires+2*time.Minute)
	}
	missing := r.until(ctx, limit, "alerts of "+t.what, func() bool {
		return !slices.ContainsFunc(t.tells, func(tell telling) bool { _, ok := r.alerts.fired(tell.alert, began); return !ok })
	})
	for _, tell := range t.tells {
		m := took(tell.alert+" fires after "+t.what, tell.fires)
		if at, ok := r.alerts.fired(tell.alert, began); ok {
			m.Value = at.Sub(began).Seconds()
		}
		all = append(all, m)
	}
	if missing != nil && !errors.Is(missing, errNotSeen) {
		return all, missing
	}
	if err := t.end(ctx); err != nil {
		return all, err
	}
	ended := time.Now()
	err = r.until(ctx, 10*time.Minute, "the end of alerts of "+t.what, func() bool {
		return !slices.ContainsFunc(t.tells, func(tell telling) bool {
			_, fired := r.alerts.fired(tell.alert, began)
			_, over := r.alerts.over(tell.alert)
			return fired && !over
		})
	})
	for _, tell := range t.tells {
		m := took(tell.alert+" is over after the end of that", tell.over)
		if at, ok := r.alerts.over(tell.alert); ok {
			m.Value = max(0, at.Sub(ended).Seconds())
		}
		all = append(all, m)
	}
	if errors.Is(err, errNotSeen) {
		err = nil // it is a measure
	}
	return all, err
}

// took is a measure of a time that has not been seen yet.
func took(name string, goal time.Duration) scenario.Measure {
	seconds := goal.Seconds()
	return scenario.Measure{Name: name, Value: math.Inf(1), Unit: "s", Goal: &seconds, Better: "lower"}
}

// judgeOthers counts the alerts that woke somebody for nothing.
func (r *seenRun) judgeOthers() {
	others, none := r.alerts.others(), 0.0
	r.notes = append(r.notes, others...)
	r.measures = append(r.measures, scenario.Measure{Name: "other alerts that fire", Value: float64(len(others)), Unit: "count", Goal: &none, Better: "lower"})
}
