package main

import (
	"context"
	"debug/buildinfo"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshpulse/meshpulse/bench/fleet"
	"github.com/meshpulse/meshpulse/bench/process"
)

// serveExposition shows what the sidecars of a fleet would at /stats/prometheus/POD, and at /stats how often it was asked.
func serveExposition(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("exposition", flag.ContinueOnError)
	pods := f.Int("pods", 100, "sidecars")
	perWorkload := f.Int("pods-per-workload", 10, "sidecars that share their label sets")
	sets := f.Int("label-sets", 20, "label sets of a sidecar")
	if err := f.Parse(args); err != nil {
		return err
	}
	var workloads []*fleet.Exposition
	for w := 0; w**perWorkload < *pods; w++ {
		e, err := fleet.NewExposition(*sets, w)
		if err != nil {
			return err
		}
		workloads = append(workloads, e)
	}
	var scrapes atomic.Int64
	began := time.Now()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, scrapes.Load()) })
	mux.HandleFunc("GET /stats/prometheus/{pod}", func(w http.ResponseWriter, r *http.Request) {
		pod, err := strconv.Atoi(r.PathValue("pod"))
		if err != nil || pod < 0 || pod >= *pods {
			http.NotFound(w, r)
			return
		}
		scrapes.Add(1)
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = w.Write(workloads[pod / *perWorkload].Append(nil, int64(time.Since(began)/flushInterval)+1)) // the scraper has gone
	})
	address, err := serveHTTP(ctx, mux)
	if err != nil {
		return err
	}
	if err := tellServing(serving{HTTPS: address}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// prometheusLoad is small, so that Prometheus fits the machine beside what it scrapes.
var prometheusLoad = load{pods: 100, labelSets: 20, interval: flushInterval, warm: prometheusWarm - 4*flushInterval}

// prometheusRows compare meshpulse with a real Prometheus that scrapes the same families at the same interval, at the same time.
func prometheusRows(ctx context.Context, s settings, t *table) error {
	version, err := prometheusVersion(s)
	if err != nil {
		t.note("No comparison with Prometheus: %v.", err)
		return nil
	}
	t.Versions["Prometheus server"] = version
	var theirs cost
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() (err error) {
		theirs, err = measurePrometheus(ctx, s)
		return err
	})
	var costs []cost
	both.Go(func() (err error) {
		beside := s
		beside.measure = prometheusMeasures * s.measure
		costs, err = measure(ctx, beside, prometheusLoad, subject{"meshpulse, 100 sidecars", meshpulse}, subject{"null sink, 100 sidecars", nullSink})
		return err
	})
	if err := both.Wait(); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%-28s %v\n", "Prometheus, 100 sidecars", theirs)
	own, floor := costs[0], costs[1]
	const what = "100 sidecars of 20 label sets every 5 s"
	t.add(what+": CPU of Prometheus", micros(theirs.receiver), "us/scrape", "lower")
	t.add(what+": CPU of meshpulse", micros(own.receiver), "us/flush", "lower")
	t.add(what+": CPU of the null sink", micros(floor.receiver), "us/flush", "lower")
	t.atLeast(what+": Prometheus' CPU over meshpulse's", ratio(theirs.receiver, own.receiver), "x", 30)
	t.add(what+": RSS of Prometheus", float64(theirs.resident)/(1<<20), "MiB", "lower")
	t.add(what+": RSS of meshpulse", float64(own.resident)/(1<<20), "MiB", "lower")
	t.atLeast(what+": Prometheus' RSS over meshpulse's", ratio(theirs.resident, own.resident), "x", 10)
	t.add(what+": of Prometheus' RSS, not pages of files", float64(theirs.anonymous)/(1<<20), "MiB", "lower")
	t.add(what+": of meshpulse's RSS, not pages of files", float64(own.anonymous)/(1<<20), "MiB", "lower")
	t.add(what+": Prometheus' over meshpulse's, without pages of files", ratio(theirs.anonymous, own.anonymous), "x", "higher")
	t.add(what+": what a label set takes of Prometheus", theirs.perLabelSet(), "KiB", "lower")
	t.add(what+": what a label set takes of meshpulse, its part of the sidecar's connection included", own.perLabelSet(), "KiB", "lower")
	t.atLeast(what+": a label set's memory, Prometheus' over meshpulse's", theirs.perLabelSet()/own.perLabelSet(), "x", 10)
	t.note("Prometheus, meshpulse and the null sink ran at the same time. Prometheus' CPU and memory hold its WAL and head block, which keep two hours and survive a restart; meshpulse keeps five minutes in memory. "+
		"Memory was taken after %d s, when meshpulse's rings are full. Pages of files are those of a program, which the kernel can drop and read again: meshpulse's are its Kubernetes libraries and its tables of functions. "+
		"What a label set takes is what has come since the load began that is no page of a file.",
		int((theirs.measured + prometheusWarm.Seconds())))
	return nil
}

// prometheusVersion is the version of the module that Prometheus was built as. (It is built by go build alone, so it does not know itself.)
func prometheusVersion(s settings) (string, error) {
	info, err := buildinfo.ReadFile(s.prometheus)
	if err != nil {
		return "", err
	}
	for _, d := range append(info.Deps, &info.Main) {
		if d.Path == "github.com/prometheus/prometheus" {
			return d.Version, nil
		}
	}
	return "", fmt.Errorf("%s is not Prometheus", s.prometheus)
}

// perLabelSet is the memory that the load has added for each of its label sets, in KiB.
func (c cost) perLabelSet() float64 {
	return float64(c.anonymous-c.idle) / 1024 / float64(prometheusLoad.pods*prometheusLoad.labelSets)
}

func ratio[T ~int64](a, b T) float64 { return float64(a) / float64(b) }

// prometheusWarm is how long Prometheus scrapes before its CPU is counted: series are made in the first scrapes, and meshpulse's
// rings are full after its retention of five minutes.
const prometheusWarm = 6 * time.Minute

// prometheusMeasures is how many times longer than others CPU is counted: of 100 sidecars it is a hundredth of a core, in ticks of 10 ms.
const prometheusMeasures = 4

func measurePrometheus(ctx context.Context, s settings) (c cost, err error) {
	l := prometheusLoad
	e, err := startSelf(ctx, s, "exposition", "--pods", strconv.Itoa(l.pods), "--label-sets", strconv.Itoa(l.labelSets))
	if err != nil {
		return c, err
	}
	defer e.Kill()
	dir, err := os.MkdirTemp(s.work, "prometheus-")
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	config := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(config, prometheusConfig(e.HTTPS, load{interval: l.interval}), 0o600); err != nil {
		return c, err
	}
	p, err := process.Start(filepath.Join(s.work, "prometheus.log"), s.prometheus, "--config.file="+config,
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+prometheusAddress, "--web.enable-lifecycle")
	if err != nil {
		return c, err
	}
	defer p.Kill()
	if c.idle, err = idlePrometheus(ctx, p); err != nil {
		return c, err
	}
	if err := os.WriteFile(config, prometheusConfig(e.HTTPS, l), 0o600); err != nil {
		return c, err
	}
	if _, err := do(ctx, http.DefaultClient, http.MethodPost, "http://"+prometheusAddress+"/-/reload"); err != nil {
		return c, err
	}
	if err := wait(ctx, prometheusWarm); err != nil {
		return c, err
	}
	cpu, scrapes, err := scraped(ctx, p, e)
	if err != nil {
		return c, err
	}
	began := time.Now()
	if err := wait(ctx, prometheusMeasures*s.measure); err != nil {
		return c, err
	}
	cpu2, scrapes2, err := scraped(ctx, p, e)
	if err != nil {
		return c, err
	}
	if scrapes2 == scrapes {
		return c, fmt.Errorf("nothing was scraped:\n%s", p.Tail(10))
	}
	c.flushes = scrapes2 - scrapes
	c.receiver = (cpu2 - cpu) / time.Duration(c.flushes)
	c.measured = time.Since(began).Seconds()
	c.receiverShare = (cpu2 - cpu).Seconds() / c.measured
	c.resident, c.peak, c.anonymous, err = memory(p.PID())
	return c, err
}

const prometheusAddress = "127.0.0.1:19090"

// idlePrometheus waits until Prometheus is ready and returns its memory that is not pages of files.
func idlePrometheus(ctx context.Context, p *process.Process) (int64, error) {
	for deadline := time.Now().Add(time.Minute); ; {
		_, err := get(ctx, http.DefaultClient, "http://"+prometheusAddress+"/-/ready")
		if err == nil {
			_, _, anonymous, err := memory(p.PID())
			return anonymous, err
		}
		select {
		case <-p.Exited():
		case <-time.After(200 * time.Millisecond):
			if time.Now().Before(deadline) && ctx.Err() == nil {
				continue
			}
		}
		return 0, fmt.Errorf("prometheus is not ready: %w\n%s", err, p.Tail(10))
	}
}

// scraped reads the CPU time of Prometheus and how often it has scraped.
func scraped(ctx context.Context, p *process.Process, exposition *child) (time.Duration, int64, error) {
	b, err := get(ctx, http.DefaultClient, "http://"+exposition.HTTPS+"/stats")
	if err != nil {
		return 0, 0, err
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return 0, 0, err
	}
	cpu, err := cpuTime(p.PID())
	return cpu, n, err
}

func prometheusConfig(target string, l load) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "global: {scrape_interval: %s, scrape_timeout: %s}\nscrape_configs:\n", l.interval, l.interval)
	for pod := range l.pods {
		fmt.Fprintf(&b, "- {job_name: \"pod-%d\", metrics_path: \"/stats/prometheus/%d\", static_configs: [{targets: [%q], labels: {namespace: test, pod: \"pod-%d\"}}]}\n",
			pod, pod, target, pod)
	}
	return []byte(b.String())
}
