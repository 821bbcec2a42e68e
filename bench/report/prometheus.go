package main

import (
	"context"
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
	"github.com/meshpulse/meshpulse/bench/prometheus"
	"github.com/meshpulse/meshpulse/bench/standalone"
	"github.com/meshpulse/meshpulse/bench/web"
)

// serveExposition shows what the sidecars of a fleet would at /stats/prometheus/POD, and at /stats
// how often it was asked.
func serveExposition(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("exposition", flag.ContinueOnError)
	pods := f.Int("pods", 100, "sidecars")
	perWorkload := f.Int("pods-per-workload", 10, "sidecars that share their label sets")
	sets := f.Int("label-sets", 20, "label sets of a sidecar")
	busiest := f.Int("busiest", 0, "requests a flush of the busiest of them, the others by Zipf's law (default: all move in every flush)")
	if err := f.Parse(args); err != nil {
		return err
	}
	var workloads []*fleet.Exposition
	for w := 0; w**perWorkload < *pods; w++ {
		e, err := fleet.NewExposition(*sets, *busiest, w)
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
		flushes := int64(time.Since(began)/flushInterval) + 1
		_, _ = w.Write(workloads[pod / *perWorkload].Append(nil, pod, flushes)) // the scraper has gone
	})
	address, err := serveHTTP(ctx, mux)
	if err != nil {
		return err
	}
	if err := tellServing(standalone.Serving{HTTPS: address}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// besidePrometheus is a load under which meshpulse is compared with Prometheus, and what the ratios
// are to be. It is small, so that Prometheus fits the machine beside what it scrapes.
type besidePrometheus struct {
	name                               string
	busiest                            int     // see load
	cpu, resident, anonymous, labelSet float64 // Prometheus' over meshpulse's; 0: no goal
	labelSetKiB                        float64 // of meshpulse; 0: no goal
}

// zipfBusiest is how many requests the busiest of 20 label sets has in a flush where few are busy:
// eight move in a flush.
const zipfBusiest = 300

var (
	busyBeside = besidePrometheus{name: "every 5 s", cpu: 30, resident: 5, anonymous: 13, labelSet: 10}
	zipfBeside = besidePrometheus{name: "of which 8 move in a flush, every 5 s", busiest: zipfBusiest, labelSet: 40, labelSetKiB: 3}
)

func (b besidePrometheus) load() load {
	return load{pods: 100, labelSets: 20, busiest: b.busiest, interval: flushInterval, warm: prometheusWarm - 4*flushInterval}
}

// prometheusRows compare meshpulse with a real Prometheus that scrapes the same families at the
// same interval, at the same time.
func (b besidePrometheus) rows(ctx context.Context, s settings, t *table) error {
	version, err := prometheus.Version(s.prometheus)
	if err != nil {
		t.note("No comparison with Prometheus: %v.", err)
		return nil
	}
	t.Versions["Prometheus server"] = version
	var theirs cost
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() (err error) {
		theirs, err = measurePrometheus(ctx, s, b.load())
		return err
	})
	var costs []cost
	both.Go(func() (err error) {
		beside := s
		beside.measure = prometheusMeasures * s.measure
		costs, err = measure(ctx, beside, b.load(), subject{name: "meshpulse, 100 sidecars", start: meshpulse}, subject{name: "null sink, 100 sidecars", start: nullSink})
		return err
	})
	if err := both.Wait(); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%-28s %v\n", "Prometheus, 100 sidecars", theirs)
	b.told(t, theirs, costs[0], costs[1])
	return nil
}

// told holds Prometheus' cost of a scrape against meshpulse's and the null sink's of a flush.
func (b besidePrometheus) told(t *table, theirs, own, floor cost) {
	what := "100 sidecars of 20 label sets " + b.name
	t.add(what+": CPU of Prometheus", micros(theirs.receiver), "us/scrape", "lower")
	t.add(what+": CPU of meshpulse", micros(own.receiver), "us/flush", "lower")
	t.add(what+": CPU of the null sink", micros(floor.receiver), "us/flush", "lower")
	t.times(what+": Prometheus' CPU over meshpulse's", ratio(theirs.receiver, own.receiver), b.cpu)
	t.add(what+": RSS of Prometheus", mebi(theirs.resident), "MiB", "lower")
	t.add(what+": RSS of meshpulse", mebi(own.resident), "MiB", "lower")
	t.times(what+": Prometheus' RSS over meshpulse's", ratio(theirs.resident, own.resident), b.resident)
	t.add(what+": of Prometheus' RSS, not pages of files", mebi(theirs.anonymous), "MiB", "lower")
	t.add(what+": of meshpulse's RSS, not pages of files", mebi(own.anonymous), "MiB", "lower")
	t.times(what+": Prometheus' over meshpulse's, without pages of files", ratio(theirs.anonymous, own.anonymous), b.anonymous)
	theirSet, ownSet := theirs.perLabelSet(b.load()), own.perLabelSet(b.load())
	t.add(what+": what a label set takes of Prometheus", theirSet, "KiB", "lower")
	const ours = ": what a label set takes of meshpulse, its part of the sidecar's connection included"
	if b.labelSetKiB > 0 {
		t.atMost(what+ours, ownSet, "KiB", b.labelSetKiB)
	} else {
		t.add(what+ours, ownSet, "KiB", "lower")
	}
	t.times(what+": a label set's memory, Prometheus' over meshpulse's", theirSet/ownSet, b.labelSet)
	if b.busiest > 0 {
		t.note("Where few label sets are busy a family's rows change as its label set's requests do: 8 of 20 in a flush, of requests, durations and sizes alike. Sizes are not kept, since no HPA asks for them.")
		return
	}
	t.note("Prometheus, meshpulse and the null sink ran at the same time. Prometheus' CPU and memory hold its WAL and head block, which keep two hours and survive a restart; meshpulse keeps five minutes in memory. "+
		"Memory was taken after %d s, when meshpulse's rings are full. Pages of files are those of a program, which the kernel can drop and read again: meshpulse's are its Kubernetes libraries and its tables of functions. "+
		"What a label set takes is what has come since the load began that is no page of a file.",
		int(theirs.measured+prometheusWarm.Seconds()))
}

// perLabelSet is the memory that the load has added for each of its label sets, in KiB.
func (c cost) perLabelSet(l load) float64 {
	return float64(c.anonymous-c.idle) / 1024 / float64(l.pods*l.labelSets)
}

// prometheusWarm is how long Prometheus scrapes before its CPU is counted: series are made in the
// first scrapes, and meshpulse's rings are full after its retention of five minutes.
const prometheusWarm = 6 * time.Minute

// prometheusMeasures is how many times longer than others CPU is counted: of 100 sidecars it is a
// hundredth of a core, in ticks of 10 ms.
const prometheusMeasures = 4

func measurePrometheus(ctx context.Context, s settings, l load) (c cost, err error) {
	e, err := startSelf(ctx, s, "exposition", "--pods", strconv.Itoa(l.pods), "--label-sets", strconv.Itoa(l.labelSets), "--busiest", strconv.Itoa(l.busiest))
	if err != nil {
		return c, err
	}
	defer e.Kill()
	p, err := prometheus.Start(ctx, prometheus.Options{
		Binary: s.prometheus, Dir: filepath.Join(s.work, "prometheus"), Address: prometheusAddress,
		Config: prometheusConfig(e.HTTPS, load{interval: l.interval}),
	})
	if err != nil {
		return c, err
	}
	defer p.Kill()
	before, _, err := scraped(ctx, p, e)
	if err != nil {
		return c, err
	}
	if err := p.Reload(ctx, prometheusConfig(e.HTTPS, l)); err != nil {
		return c, err
	}
	if err := wait(ctx, prometheusWarm); err != nil {
		return c, err
	}
	warm, from, err := scraped(ctx, p, e)
	if err != nil {
		return c, err
	}
	began := time.Now()
	if err := wait(ctx, prometheusMeasures*s.measure); err != nil {
		return c, err
	}
	after, to, err := scraped(ctx, p, e)
	if err != nil {
		return c, err
	}
	c, err = scrapedCost(warm, after, to-from, time.Since(began))
	c.idle = before.Anonymous
	return c, err
}

// scrapedCost is what so many scrapes within a time took.
func scrapedCost(before, after process.Usage, scrapes int64, within time.Duration) (cost, error) {
	if scrapes <= 0 {
		return cost{}, errors.New("nothing was scraped")
	}
	cpu := after.CPU - before.CPU
	return cost{
		flushes: scrapes, receiver: cpu / time.Duration(scrapes), measured: within.Seconds(), receiverShare: cpu.Seconds() / within.Seconds(),
		resident: after.Resident, anonymous: after.Anonymous,
	}, nil
}

const prometheusAddress = "127.0.0.1:19090"

// scraped reads what Prometheus has used, and how often it has scraped.
func scraped(ctx context.Context, p *prometheus.Server, exposition *child) (used process.Usage, scrapes int64, err error) {
	b, err := web.Get(ctx, http.DefaultClient, "http://"+exposition.HTTPS+"/stats")
	if err != nil {
		return used, 0, err
	}
	if scrapes, err = strconv.ParseInt(string(b), 10, 64); err != nil {
		return used, 0, err
	}
	used, err = process.UsageOf(p.PID())
	return used, scrapes, err
}

func prometheusConfig(target string, l load) string {
	var b strings.Builder
	fmt.Fprintf(&b, "global: {scrape_interval: %s, scrape_timeout: %s}\nscrape_configs:\n", l.interval, l.interval)
	for pod := range l.pods {
		fmt.Fprintf(&b, "- {job_name: \"pod-%d\", metrics_path: \"/stats/prometheus/%d\", static_configs: [{targets: [%q], labels: {namespace: test, pod: \"pod-%d\"}}]}\n",
			pod, pod, target, pod)
	}
	return b.String()
}
