package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	traffic "github.com/meshpulse/meshpulse/bench/load"
	"github.com/meshpulse/meshpulse/bench/prometheus"
	"github.com/meshpulse/meshpulse/bench/sidecar"
	"github.com/meshpulse/meshpulse/bench/standalone"
)

const (
	besideTime   = 5 * time.Minute
	besideScrape = 5 * time.Second
	besideRate   = 20 // requests a second and pod
)

// besidePod is a pod's life: it joins (0: it is there from the start), and then restarts, leaves or
// is killed, each where it is set.
type besidePod struct {
	workload                     string
	join, restart, leave, killed time.Duration

	name    string
	sidecar *sidecar.Sidecar
	load    *traffic.Generator
	sent    int // requests answered by sidecars and loads that are gone
}

func besidePods() []*besidePod {
	pods := []*besidePod{
		{workload: "steady"},
		{workload: "steady"},
		{workload: "steady"},
		{workload: "joining"},
		{workload: "joining", join: 62 * time.Second},
		{workload: "joining", join: 123 * time.Second},
		{workload: "leaving"},
		{workload: "leaving", leave: 64 * time.Second},
		{workload: "leaving", killed: 121 * time.Second},
		{workload: "restarting"},
		{workload: "restarting", restart: 63 * time.Second},
		{workload: "restarting", restart: 122 * time.Second},
	}
	for i, p := range pods {
		p.name = fmt.Sprintf("beside-%d", i)
	}
	return pods
}

var besideWorkloads = [...]string{"steady", "joining", "leaving", "restarting"}

func besideMinute(workload string) string {
	return fmt.Sprintf(`sum(increase(istio_requests_total{reporter="destination",destination_workload=%q}[1m]))`, workload)
}

func besideSelector(workload string) string {
	return fmt.Sprintf(`istio_requests_total{reporter="destination",destination_workload=%q}`, workload)
}

// besideGrown is what a stored counter grew by: stored counters do not fall.
func besideGrown(workload string) string {
	return fmt.Sprintf("sum(max_over_time(%[1]s[7m]) - min_over_time(%[1]s[7m]))", besideSelector(workload))
}

// beside is a Prometheus and a meshpulse with the same sidecars.
type beside struct {
	s          settings
	dir        string
	pods       []*besidePod
	queries    *queries
	server     *standalone.Server
	prometheus *prometheus.Server
}

// runBeside lets a real Prometheus scrape the Envoys that push here, while pods join, leave and
// restart.
func runBeside(ctx context.Context, args []string) (err error) {
	s, err := parseSettings("beside", args, nil)
	if err != nil {
		return err
	}
	t := newTable("make beside", time.Now())
	t.title = "The same Envoys, scraped by Prometheus and pushing to meshpulse"
	if t.Versions["Prometheus server"], err = prometheus.Version(s.prometheus); err != nil {
		return err
	}
	b := &beside{s: s, dir: filepath.Join(s.work, "beside"), pods: besidePods(), queries: newQueries()}
	defer func() { err = errors.Join(err, b.stop()) }()
	if err := b.start(ctx); err != nil {
		return err
	}
	minutes, err := b.live(ctx)
	if err != nil {
		return err
	}
	run, err := b.overTheRun(ctx)
	if err != nil {
		return err
	}
	if err := besideTold(t, run, minutes); err != nil {
		return err
	}
	fmt.Print(t.markdown())
	return t.write(s.results, "beside")
}

func (b *beside) start(ctx context.Context) error {
	if err := errors.Join(os.RemoveAll(b.dir), os.MkdirAll(b.dir, 0o750)); err != nil {
		return err
	}
	for _, w := range besideWorkloads {
		b.queries.add(besideMinute(w))
		b.queries.add(besideGrown(w))
	}
	hpas := filepath.Join(b.dir, "hpas")
	if err := b.queries.write(hpas); err != nil {
		return err
	}
	var err error
	b.server, err = standalone.Start(ctx, standalone.Options{Binary: b.s.meshpulse, Dir: b.dir, HPADir: hpas})
	if err != nil {
		return err
	}
	b.prometheus, err = prometheus.Start(ctx, prometheus.Options{
		Binary: b.s.prometheus, Dir: filepath.Join(b.dir, "prometheus"), Address: "127.0.0.1:19091", Config: b.config(),
	})
	return err
}

// config tells Prometheus which pods there are.
func (b *beside) config() string {
	var text strings.Builder
	fmt.Fprintf(&text, `global: {scrape_interval: %[1]s, scrape_timeout: %[1]s}
scrape_configs:
- job_name: sidecars
  metrics_path: /stats/prometheus
  params: {filter: ["^istiocustom"]}
  metric_relabel_configs:
  - {source_labels: [__name__], regex: envoy_istiocustom_(.*), target_label: __name__}
  static_configs:
`, besideScrape)
	text.WriteString("  - {targets: []}\n")
	for _, p := range b.pods {
		if p.sidecar != nil {
			fmt.Fprintf(&text, "  - {targets: [%q], labels: {namespace: test, pod: %s, instance: %s}}\n",
				strings.TrimPrefix(p.sidecar.AdminURL(), "http://"), p.name, p.name)
		}
	}
	return text.String()
}

// targets tells a running Prometheus.
func (b *beside) targets(ctx context.Context) error { return b.prometheus.Reload(ctx, b.config()) }

func (b *beside) join(ctx context.Context, i int) error {
	p := b.pods[i]
	var err error
	p.sidecar, err = sidecar.Start(ctx, sidecar.Options{
		Dir: b.dir, Pod: p.name, Namespace: "test", Workload: p.workload, Address: fmt.Sprintf("127.97.61.%d", i+1),
		InboundPort: 8080, AdminPort: 15000, Sink: b.server.Ingest, Answers: true,
	})
	if err != nil {
		return err
	}
	p.load = traffic.Start(ctx, traffic.Options{
		Targets: []string{p.sidecar.Address()}, Profile: traffic.Steady(besideRate, traffic.Endless),
		Header: http.Header{"X-Source-Workload": {"client"}},
	})
	return nil
}

// quiet stops a pod's load and remembers what was answered.
func (p *besidePod) quiet() {
	if p.load != nil {
		p.load.Stop()
		seen := p.load.All()
		p.sent += seen.Requests - seen.Failed
		p.load = nil
	}
}

func (p *besidePod) stop(kill bool) error {
	p.quiet()
	if p.sidecar == nil {
		return nil
	}
	defer func() { p.sidecar = nil }()
	if kill {
		p.sidecar.Kill()
		return nil
	}
	return p.sidecar.Stop()
}

func (b *beside) stop() error {
	var errs []error
	for _, p := range b.pods {
		errs = append(errs, p.stop(false))
	}
	if b.prometheus != nil {
		b.prometheus.Kill()
	}
	if b.server != nil {
		errs = append(errs, b.server.Stop())
	}
	return errors.Join(errs...)
}

// besideAnswer is what both say of a workload's last minute.
type besideAnswer struct {
	at              time.Duration
	workload        string
	own, prometheus float64
	calm            bool // nothing has happened to the pods in that minute, nor shortly before
}

// live lets the pods live their lives, and asks both sides every 15 s.
func (b *beside) live(ctx context.Context) ([]besideAnswer, error) {
	began := time.Now()
	var answers []besideAnswer
	done := make([]bool, len(b.pods))
	for tick := time.Duration(0); tick <= besideTime; tick += time.Second {
		if err := wait(ctx, time.Until(began.Add(tick))); err != nil {
			return nil, err
		}
		for i, p := range b.pods {
			if err := b.turn(ctx, i, p, tick, &done[i]); err != nil {
				return nil, err
			}
		}
		if tick < 75*time.Second || tick%(15*time.Second) != 0 {
			continue
		}
		for _, w := range besideWorkloads {
			own, err := b.queries.ask(ctx, b.server, besideMinute(w))
			if err != nil {
				return nil, err
			}
			theirs, err := b.prometheus.Value(ctx, besideMinute(w))
			if err != nil {
				return nil, err
			}
			answers = append(answers, besideAnswer{tick, w, own, theirs, b.calm(w, tick)})
		}
	}
	for _, p := range b.pods {
		p.quiet()
	}
	return answers, wait(ctx, 2*flushInterval+2*time.Second)
}

// turn does what a pod's life has at an instant.
func (b *beside) turn(ctx context.Context, i int, p *besidePod, now time.Duration, done *bool) error {
	switch {
	case now == p.join:
		if err := b.join(ctx, i); err != nil {
			return err
		}
		return b.targets(ctx)
	case *done:
		return nil
	case p.restart > 0 && now >= p.restart:
		*done = true
		p.sidecar.Kill()
		if err := p.stop(true); err != nil {
			return err
		}
		return b.join(ctx, i)
	case p.leave > 0 && now >= p.leave, p.killed > 0 && now >= p.killed:
		*done = true
		return errors.Join(p.stop(p.killed > 0), b.targets(ctx))
	}
	return nil
}

// calm reports whether nothing happened to a workload's pods within the minute before, and the
// flush and scrape before that.
func (b *beside) calm(workload string, now time.Duration) bool {
	for _, p := range b.pods {
		for _, at := range []time.Duration{p.join, p.restart, p.leave, p.killed} {
			if p.workload == workload && (at > 0 || p.join == 0 && at == p.join) && at <= now && now-at < time.Minute+3*flushInterval {
				return false
			}
		}
	}
	return true
}

// grown is what a counter has grown by, resets added up: its increase without extrapolation.
func grown(samples []float64) (sum float64) {
	for i := 1; i < len(samples); i++ {
		if last, now := samples[i-1], samples[i]; now >= last {
			sum += now - last
		} else {
			sum += now
		}
	}
	return sum
}

// counted is what of a workload's requests over the run was answered, and what both have counted.
type counted struct {
	workload              string
	sent, own, prometheus float64
}

// overTheRun asks both what they have counted.
func (b *beside) overTheRun(ctx context.Context) (all []counted, err error) {
	for _, w := range besideWorkloads {
		c := counted{workload: w}
		for _, p := range b.pods {
			if p.workload == w {
				c.sent += float64(p.sent)
			}
		}
		if c.own, err = b.queries.ask(ctx, b.server, besideGrown(w)); err != nil {
			return nil, err
		}
		series, err := b.prometheus.Samples(ctx, besideSelector(w)+"[7m]")
		if err != nil {
			return nil, err
		}
		for _, samples := range series {
			c.prometheus += grown(samples)
		}
		all = append(all, c)
	}
	return all, nil
}

// besideTold tells what both have counted over the run, and how far apart their last minutes are.
func besideTold(t *table, run []counted, answers []besideAnswer) error {
	fmt.Fprintf(&t.body, "Five minutes, 12 Envoys of four workloads, %d requests a second each; flush and scrape every %s.\n\n## Over the run\n\n"+
		"Counters' growth without extrapolation, resets added up.\n\n"+
		"| workload | requests answered | meshpulse | Prometheus |\n|---|--:|--:|--:|\n", besideRate, besideScrape)
	for _, c := range run {
		fmt.Fprintf(&t.body, "| %s | %.0f | %.0f (%+.2f %%) | %.0f (%+.2f %%) |\n",
			c.workload, c.sent, c.own, 100*(c.own/c.sent-1), c.prometheus, 100*(c.prometheus/c.sent-1))
		t.add(c.workload+": requests of the run that meshpulse has not counted", c.sent-c.own, "requests", "lower")
		t.add(c.workload+": requests of the run that Prometheus has not counted", c.sent-c.prometheus, "requests", "lower")
	}
	t.body.WriteString("\n## increase(…[1m]), outside of joins and restarts\n\nThe sum of all such answers, asked every 15 s at the same time.\n\n" +
		"| workload | answers | meshpulse | Prometheus | apart | worst single one |\n|---|--:|--:|--:|--:|--:|\n")
	for _, w := range besideWorkloads {
		own, theirs, worst, n := 0.0, 0.0, 0.0, 0
		for _, a := range answers {
			if a.workload == w && a.calm {
				own, theirs, n = own+a.own, theirs+a.prometheus, n+1
				worst = max(worst, math.Abs(a.own/a.prometheus-1))
			}
		}
		if n == 0 {
			return fmt.Errorf("%s: no calm minute", w)
		}
		apart := 100 * math.Abs(own/theirs-1)
		fmt.Fprintf(&t.body, "| %s | %d | %.1f | %.1f | %.2f %% | %.2f %% |\n", w, n, own, theirs, apart, 100*worst)
		t.atMost(w+": increase(…[1m]) outside of joins and restarts, meshpulse and Prometheus apart", apart, "%", 1)
		t.add(w+": the same, worst single answer", 100*worst, "%", "lower")
	}
	t.body.WriteString("\n")
	t.note("A new pod's first requests are counted by meshpulse and not by Prometheus, which sees a counter appear at what it already counts. " +
		"Of a pod that leaves Prometheus has not seen what came after its last scrape. Of an Envoy that is killed nobody has what came after its last flush or scrape.")
	return nil
}
