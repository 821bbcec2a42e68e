package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/bench/fleet"
	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/standalone"
	"github.com/meshpulse/meshpulse/bench/web"
)

// soakSettings are those of a soak.
type soakSettings struct {
	settings
	duration        time.Duration
	pods, labelSets int
	churn, restarts int
}

// runSoak keeps thousands of streams with churn for a while, then breaks all connections at once.
func runSoak(ctx context.Context, args []string) error {
	var k soakSettings
	var err error
	k.settings, err = parseSettings("soak", args, func(f *flag.FlagSet) {
		f.DurationVar(&k.duration, "duration", 10*time.Minute, "how long it runs before all reconnect")
		f.IntVar(&k.pods, "pods", 5000, "streams")
		f.IntVar(&k.labelSets, "label-sets", 20, "label sets of each")
		f.IntVar(&k.churn, "replaced-per-minute", 60, "pods that are replaced")
		f.IntVar(&k.restarts, "restarted-per-minute", 60, "Envoys that restart")
	})
	if err != nil {
		return err
	}
	t := newTable("make bench-soak ("+strings.Join(args, " ")+")", time.Now())
	if err := soak(ctx, k, t); err != nil {
		return err
	}
	fmt.Print(t.markdown())
	return t.write(k.results, "soak")
}

func soak(ctx context.Context, k soakSettings, t *table) error {
	hpas := filepath.Join(k.work, "soak-hpas")
	if err := writeHPAs(hpas, 10); err != nil {
		return err
	}
	m, err := startMeshpulse(ctx, k.settings, hpas, "--profiling-address", profilingAddress)
	if err != nil {
		return err
	}
	defer m.Kill()
	l := load{pods: k.pods, labelSets: k.labelSets, interval: flushInterval, churn: k.churn + k.restarts}
	f, err := startSelf(ctx, k.settings, "fleet", fleetArgs(m.Ingest, l,
		"--replaced-per-minute", strconv.Itoa(k.churn), "--restarted-per-minute", strconv.Itoa(k.restarts))...)
	if err != nil {
		return err
	}
	defer f.Kill()
	if err := steady(ctx, f, l, 3); err != nil {
		return err
	}
	// The retention has to be full of rows and the first pods that were replaced have to be freed,
	// before heaps compare.
	settle := min(k.duration/2, 6*time.Minute)
	w := &watch{meshpulse: m, fleet: f}
	if err := w.answered(ctx); err != nil {
		return err
	}
	if err := w.run(ctx, settle); err != nil {
		return err
	}
	before, err := liveHeap(ctx)
	if err != nil {
		return err
	}
	if err := w.run(ctx, k.duration-settle); err != nil {
		return err
	}
	after, err := liveHeap(ctx)
	if err != nil {
		return err
	}
	w.seen.steadyAge, w.seen.oldest = w.seen.oldest, 0
	if err := w.reconnect(ctx); err != nil {
		return err
	}
	sent, err := f.fleetStats(ctx)
	if err != nil {
		return err
	}
	read, err := m.messages(ctx)
	if err != nil {
		return err
	}
	last, err := liveHeap(ctx)
	if err != nil {
		return err
	}
	w.seen.heap, w.seen.lost = heaps{before, after, last}, missing(sent, read)
	if err := w.end(ctx); err != nil {
		return err
	}
	soakTold(t, k, w.seen)
	return nil
}

// heaps are live heaps: in the middle, at the end, and after all have reconnected; bytes.
type heaps struct{ middle, end, reconnected int64 }

// missing is how many flushes were sent and have not arrived, but for one of each sidecar that has
// gone: what it had sent last may have died with it.
func missing(sent fleet.Stats, read int64) int64 {
	return max(0, sent.Flushes-sent.Replaced-sent.Restarted-read)
}

// watch asks meshpulse for the age of the newest sample while a fleet reports.
type watch struct {
	meshpulse, fleet *child
	seen             soaked
}

// soaked is what was seen of a soak.
type soaked struct {
	oldest    time.Duration // newest sample's greatest age
	steadyAge time.Duration // and before all reconnected
	lost      int64         // flushes
	heap      heaps
	fleet     fleet.Stats
	streams   float64 // open in the end
	// meshpulse and sender are what both have used.
	meshpulse, sender process.Usage
}

// answered waits until meshpulse knows the HPAs: a thousand take it a while beside thousands of new
// sidecars.
func (w *watch) answered(ctx context.Context) error {
	err := until(ctx, 2*time.Minute, func() error { return w.look(ctx) })
	w.seen.oldest = 0
	return err
}

// run looks once a second.
func (w *watch) run(ctx context.Context, d time.Duration) error {
	for end := time.Now().Add(d); time.Now().Before(end); {
		if err := errors.Join(w.look(ctx), wait(ctx, time.Second)); err != nil {
			return err
		}
	}
	return nil
}

// look asks for one HPA's metric and takes the age of its newest sample.
func (w *watch) look(ctx context.Context) error {
	b, err := web.Get(ctx, w.meshpulse.client, "https://"+w.meshpulse.HTTPS+standalone.MetricPath("test", queryMetric, "query-name=query-3"))
	if err != nil {
		return err
	}
	var list struct {
		Items []struct{ Timestamp time.Time }
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	for _, item := range list.Items {
		w.seen.oldest = max(w.seen.oldest, time.Since(item.Timestamp))
	}
	return nil
}

// reconnect breaks all connections and watches while all come back and flush; then ends churn, so
// that all are there.
func (w *watch) reconnect(ctx context.Context) error {
	return errors.Join(w.tell(ctx, "/reconnect"), w.run(ctx, 4*flushInterval), w.tell(ctx, "/calm"), w.run(ctx, 3*flushInterval))
}

// tell gives the fleet an order.
func (w *watch) tell(ctx context.Context, order string) error {
	_, err := web.Do(ctx, w.fleet.client, http.MethodPost, "http://"+w.fleet.HTTPS+order)
	return err
}

// end sees what both have done in all.
func (w *watch) end(ctx context.Context) error {
	var errs [4]error
	w.seen.fleet, errs[0] = w.fleet.fleetStats(ctx)
	w.seen.streams, errs[1] = w.meshpulse.gauge(ctx, `meshpulse_ingest_streams{security="plaintext"}`)
	w.seen.meshpulse, errs[2] = process.UsageOf(w.meshpulse.PID())
	w.seen.sender, errs[3] = process.UsageOf(w.fleet.PID())
	return errors.Join(errs[:]...)
}

func soakTold(t *table, k soakSettings, seen soaked) {
	what := fmt.Sprintf("soak, %d streams of %d label sets for %s: ", k.pods, k.labelSets, k.duration)
	st, heap := seen.fleet, seen.heap
	t.atLeast(what+"streams open at the end", seen.streams, "", float64(k.pods))
	t.atMost(what+"flushes that could not be sent", float64(st.Failed), "", 0)
	t.atMost(what+"flushes sent that did not arrive", float64(seen.lost), "", 0)
	t.add(what+"flushes", float64(st.Flushes), "", "higher")
	t.add(what+"pods replaced, Envoys restarted", float64(st.Replaced+st.Restarted), "", "higher")
	t.atMost(what+"live heap at the end over that in the middle", ratio(heap.end, heap.middle), "x", 1.05)
	t.atMost(what+"live heap after all have reconnected over that in the middle", ratio(heap.reconnected, heap.middle), "x", 1.05)
	t.add(what+"live heap at the end", mebi(heap.end), "MiB", "lower")
	t.add(what+"RSS", mebi(seen.meshpulse.Resident), "MiB", "lower")
	t.add(what+"peak RSS", mebi(seen.meshpulse.Peak), "MiB", "lower")
	t.atMost(what+"greatest age of the newest sample", seen.steadyAge.Seconds(), "s", 2*flushInterval.Seconds())
	t.atMost(what+"greatest age of the newest sample while all reconnect", seen.oldest.Seconds(), "s", 3*flushInterval.Seconds())
	t.add(what+"CPU of meshpulse", micros(seen.meshpulse.CPU)/float64(st.Flushes), "us/flush", "lower")
	t.add(what+"CPU of the sender", micros(seen.sender.CPU)/float64(st.Flushes), "us/flush", "lower")
	t.note("Of what was sent until all had reconnected one flush is let off for each pod that was replaced and each Envoy that was restarted: what it had sent last may have died with its connection.")
	if st.LastError != "" {
		t.note("The newest flush that could not be sent: %s.", st.LastError)
	}
}

// liveHeap makes meshpulse collect its garbage and returns what is left.
func liveHeap(ctx context.Context) (int64, error) {
	for range 2 { // interned strings go in the second cycle
		if _, err := web.Get(ctx, http.DefaultClient, "http://"+profilingAddress+"/debug/pprof/heap?gc=1&debug=0"); err != nil {
			return 0, err
		}
	}
	b, err := web.Get(ctx, http.DefaultClient, "http://"+profilingAddress+"/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "# HeapAlloc = "); ok {
			return strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		}
	}
	return 0, errors.New("heap profile tells no HeapAlloc")
}
