package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"
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
	f, err := startSelf(ctx, k.settings, "fleet", "--target", m.Ingest, "--pods", strconv.Itoa(k.pods), "--label-sets", strconv.Itoa(k.labelSets),
		"--replaced-per-minute", strconv.Itoa(k.churn), "--restarted-per-minute", strconv.Itoa(k.restarts))
	if err != nil {
		return err
	}
	defer f.Kill()
	l := load{pods: k.pods, labelSets: k.labelSets, interval: flushInterval, churn: k.churn + k.restarts}
	if err := steady(ctx, f, l, 3); err != nil {
		return err
	}
	// The retention has to be full of rows and the first pods that were replaced have to be freed, before heaps compare.
	settle := min(k.duration/2, 6*time.Minute)
	w := &watch{meshpulse: m, fleet: f, client: insecureClient()}
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
	w.steadyAge, w.oldest = w.oldest, 0
	if err := w.reconnect(ctx); err != nil {
		return err
	}
	if w.lost, err = w.missing(ctx); err != nil {
		return err
	}
	last, err := liveHeap(ctx)
	if err != nil {
		return err
	}
	return w.report(ctx, k, t, heaps{before, after, last})
}

// heaps are live heaps: in the middle, at the end, and after all have reconnected; bytes.
type heaps struct{ middle, end, reconnected int64 }

// missing is how many flushes were sent and have not arrived, but for one of each sidecar that has gone: what it had sent last may
// have died with it.
func (w *watch) missing(ctx context.Context) (float64, error) {
	st, err := w.fleet.fleetStats(ctx)
	if err != nil {
		return 0, err
	}
	messages, err := w.gauge(ctx, "meshpulse_ingest_messages_total")
	return max(0, float64(st.Flushes-st.Replaced-st.Restarted)-messages), err
}

// insecureClient trusts meshpulse's self-made certificate, which is in its memory; the address is this machine's own.
func insecureClient() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
}

// watch asks meshpulse for the age of the newest sample while a fleet reports.
type watch struct {
	meshpulse, fleet *child
	client           *http.Client
	oldest           time.Duration // newest sample's greatest age
	steadyAge        time.Duration // and before all reconnected
	lost             float64       // flushes
}

// answered waits until meshpulse knows the HPAs: a thousand take it a while beside thousands of new sidecars.
func (w *watch) answered(ctx context.Context) error {
	for deadline := time.Now().Add(2 * time.Minute); ; {
		err := w.look(ctx)
		if err == nil {
			w.oldest = 0
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
	}
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
	b, err := get(ctx, w.client, "https://"+w.meshpulse.HTTPS+
		"/apis/external.metrics.k8s.io/v1beta1/namespaces/test/"+queryMetric+"?labelSelector=query-name%3Dquery-3")
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
		w.oldest = max(w.oldest, time.Since(item.Timestamp))
	}
	return nil
}

// reconnect breaks all connections and watches while all come back and flush; then ends churn, so that all are there.
func (w *watch) reconnect(ctx context.Context) error {
	return errors.Join(w.tell("/reconnect"), w.run(ctx, 4*flushInterval), w.tell("/calm"), w.run(ctx, 3*flushInterval))
}

// tell gives the fleet an order.
func (w *watch) tell(order string) error {
	resp, err := w.client.Post("http://"+w.fleet.HTTPS+order, "", nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (w *watch) report(ctx context.Context, k soakSettings, t *table, live heaps) error {
	st, err := w.fleet.fleetStats(ctx)
	if err != nil {
		return err
	}
	open, err := w.gauge(ctx, "meshpulse_ingest_streams")
	if err != nil {
		return err
	}
	resident, peak, _, err := memory(w.meshpulse.PID())
	if err != nil {
		return err
	}
	cpu, e1 := cpuTime(w.meshpulse.PID())
	sender, e2 := cpuTime(w.fleet.PID())
	what := fmt.Sprintf("soak, %d streams of %d label sets for %s: ", k.pods, k.labelSets, k.duration)
	t.atLeast(what+"streams open at the end", open, "", float64(k.pods))
	t.atMost(what+"flushes that could not be sent", float64(st.Failed), "", 0)
	t.atMost(what+"flushes sent that did not arrive", w.lost, "", 0)
	t.add(what+"flushes", float64(st.Flushes), "", "higher")
	t.add(what+"pods replaced, Envoys restarted", float64(st.Replaced+st.Restarted), "", "higher")
	t.atMost(what+"live heap at the end over that in the middle", float64(live.end)/float64(live.middle), "x", 1.05)
	t.atMost(what+"live heap after all have reconnected over that in the middle", float64(live.reconnected)/float64(live.middle), "x", 1.05)
	t.add(what+"live heap at the end", float64(live.end)/(1<<20), "MiB", "lower")
	t.add(what+"RSS", float64(resident)/(1<<20), "MiB", "lower")
	t.add(what+"peak RSS", float64(peak)/(1<<20), "MiB", "lower")
	t.atMost(what+"greatest age of the newest sample", w.steadyAge.Seconds(), "s", 2*flushInterval.Seconds())
	t.atMost(what+"greatest age of the newest sample while all reconnect", w.oldest.Seconds(), "s", 3*flushInterval.Seconds())
	t.add(what+"CPU of meshpulse", micros(cpu)/float64(st.Flushes), "us/flush", "lower")
	t.add(what+"CPU of the sender", micros(sender)/float64(st.Flushes), "us/flush", "lower")
	t.note("Of what was sent until all had reconnected one flush is let off for each pod that was replaced and each Envoy that was restarted: what it had sent last may have died with its connection.")
	if st.LastError != "" {
		t.note("The newest flush that could not be sent: %s.", st.LastError)
	}
	return errors.Join(e1, e2)
}

// gauge reads one of meshpulse's own metrics.
func (w *watch) gauge(ctx context.Context, name string) (float64, error) {
	b, err := get(ctx, w.client, "https://"+w.meshpulse.HTTPS+"/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(v), 64)
		}
	}
	return 0, fmt.Errorf("meshpulse has no metric %s", name)
}

// liveHeap makes meshpulse collect its garbage and returns what is left.
func liveHeap(ctx context.Context) (int64, error) {
	for range 2 { // interned strings go in the second cycle
		if _, err := get(ctx, http.DefaultClient, "http://"+profilingAddress+"/debug/pprof/heap?gc=1&debug=0"); err != nil {
			return 0, err
		}
	}
	b, err := get(ctx, http.DefaultClient, "http://"+profilingAddress+"/debug/pprof/heap?gc=1&debug=1")
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
