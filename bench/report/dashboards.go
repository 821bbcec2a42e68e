package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	traffic "github.com/meshpulse/meshpulse/bench/load"
	"github.com/meshpulse/meshpulse/bench/standalone"
	"github.com/meshpulse/meshpulse/bench/web"
)

const (
	dashboardsName = "dashboards"
	// dashboardRefresh is how often each asks again, dashboardBack how far it looks back.
	dashboardRefresh = 5 * time.Second
	dashboardBack    = 15 * time.Minute
	dashboardStep    = 15 * time.Second
	// dashboardTurns is how often each load is measured, one after the other, each for
	// dashboardTurn.
	dashboardTurns = 3
	dashboardTurn  = 15 * time.Second
)

// dashboardLoad is how many dashboards ask what. Its expressions select 1,000 series: 20 label sets
// of 50 pods.
type dashboardLoad struct {
	name, query string
	dashboards  int
}

var dashboardLoads = []dashboardLoad{
	{name: "without"},
	{"100, a sum by workload", `sum by (destination_workload) (rate(istio_requests_total{destination_workload=~"svc-000[0-4]"}[1m]))`, 100},
	{"100, each series", `rate(istio_requests_total{destination_workload=~"svc-000[0-4]"}[1m])`, 100},
	{"400, each series", `rate(istio_requests_total{destination_workload=~"svc-000[0-4]"}[1m])`, 400},
}

// asked is what came of a load: how long answers of external metrics took, and what the dashboards
// got meanwhile.
type asked struct {
	answers []time.Duration
	panels  panelStats
}

// runDashboards measures how long answers of external metrics take while dashboards ask Prometheus'
// API of the same process for 15 minutes of 1,000 series, which it has to have first.
func runDashboards(ctx context.Context, args []string) error {
	warm := dashboardBack
	s, err := parseSettings(dashboardsName, args, func(f *flag.FlagSet) {
		f.DurationVar(&warm, "warm", warm, "how long sidecars report before anybody asks")
	})
	if err != nil {
		return err
	}
	t := newTable(strings.TrimSpace("make bench-dashboards "+strings.Join(args, " ")), time.Now())
	t.title = "Dashboards beside autoscalers"
	took, err := measureDashboards(ctx, s, warm)
	if err != nil {
		return err
	}
	dashboardsTold(t, took)
	noteLoad(t)
	fmt.Print(t.markdown())
	if warm < dashboardBack {
		return nil // printed and not kept
	}
	return t.write(s.results, dashboardsName)
}

func measureDashboards(ctx context.Context, s settings, warm time.Duration) (took []asked, err error) {
	l := load{pods: 200, labelSets: 20, interval: flushInterval}
	hpas := filepath.Join(s.work, "hpas")
	if err := writeHPAs(hpas, l.pods/10); err != nil {
		return nil, err
	}
	own, err := startMeshpulse(ctx, s, hpas, "--prometheus-address=127.0.0.1:0", "--retention="+(dashboardBack+time.Minute).String(), "--profiling-address="+profilingAddress)
	if err != nil {
		return nil, err
	}
	defer own.Kill()
	f, err := startSelf(ctx, s, "fleet", fleetArgs(own.Ingest, l)...)
	if err != nil {
		return nil, err
	}
	defer f.Kill()
	if err := steady(ctx, f, l, 3); err != nil {
		return nil, err
	}
	fmt.Printf("the sidecars report: the series are full in %v\n", warm)
	if err := wait(ctx, warm); err != nil {
		return nil, err
	}
	took = make([]asked, len(dashboardLoads))
	for range dashboardTurns {
		for i, d := range dashboardLoads {
			if err := underDashboards(ctx, s, own, d, &took[i]); err != nil {
				return nil, fmt.Errorf("%s: %w", d.name, err)
			}
		}
	}
	for i := range took {
		slices.Sort(took[i].answers)
		slices.Sort(took[i].panels.Took)
	}
	return took, nil
}

// underDashboards asks for external metrics while dashboards ask, and adds what it saw.
func underDashboards(ctx context.Context, s settings, own *child, d dashboardLoad, into *asked) error {
	var panels *child
	if d.dashboards > 0 {
		var err error
		panels, err = startSelf(ctx, s, "panels", "--target", "http://"+own.Prometheus, "--dashboards", fmt.Sprint(d.dashboards), "--query", d.query)
		if err != nil {
			return err
		}
		defer panels.Kill()
		if err := wait(ctx, dashboardRefresh); err != nil { // until each has asked
			return err
		}
	}
	answers, err := askAlone(ctx, own, dashboardTurn)
	if err != nil {
		return err
	}
	into.answers = append(into.answers, answers...)
	if panels == nil {
		return wait(ctx, dashboardRefresh)
	}
	text, err := web.Get(ctx, panels.client, "http://"+panels.HTTPS+"/stats")
	if err != nil {
		return err
	}
	var seen panelStats
	if err := json.Unmarshal(text, &seen); err != nil {
		return err
	}
	into.panels.add(seen)
	return nil
}

// askAlone asks for external metrics at a steady rate, whatever the answers take, and returns how
// long each took from when it was due.
func askAlone(ctx context.Context, own *child, length time.Duration) (answers []time.Duration, err error) {
	client := web.Insecure()
	client.Transport.(*http.Transport).ForceAttemptHTTP2 = true // as the API server asks
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var failed error
	traffic.Loop(ctx, time.Now(), traffic.Steady(apiRate, apiWarm+length), func(i int, due time.Time) {
		path := standalone.MetricPath("test", queryMetric, fmt.Sprintf("query-name=query-%d", rand.IntN(apiHPAs)))
		_, err := web.Get(ctx, client, "https://"+own.HTTPS+path)
		took := time.Since(due)
		mu.Lock()
		defer mu.Unlock()
		failed = cmp.Or(failed, err)
		if i >= apiRate*int(apiWarm.Seconds()) {
			answers = append(answers, took)
		}
	})
	return answers, cmp.Or(failed, ctx.Err())
}

// dashboardsTold holds the answers under each load against those without, and says how many of the
// dashboards' own were refused.
func dashboardsTold(t *table, took []asked) {
	const what = "external metrics GET, 1,000 HPAs, 100 requests/s, dashboards that refresh every 5 s: "
	alone := millis(quantile(took[0].answers, .99))
	t.add(what+"without: p50", millis(quantile(took[0].answers, .5)), "ms", "lower")
	t.add(what+"without: p99", alone, "ms", "lower")
	for i, d := range dashboardLoads {
		if i == 0 {
			continue
		}
		under, p := took[i], took[i].panels
		t.add(what+d.name+": p50", millis(quantile(under.answers, .5)), "ms", "lower")
		t.atMost(what+d.name+": p99", millis(quantile(under.answers, .99)), "ms", max(1.5*alone, alone+5))
		t.add("query_range over 15 min of 1,000 series: "+d.name+": refused with 503", float64(p.Refused)/float64(p.asked()), "share", "lower")
		t.atMost("query_range over 15 min of 1,000 series: "+d.name+": answered otherwise than 200 or 503", float64(p.Failed), "", 0)
		if len(p.Took) > 0 {
			t.add("query_range over 15 min of 1,000 series: "+d.name+": p50 of those with 200", millis(quantile(p.Took, .5)), "ms", "lower")
		}
	}
	t.note("The goal of a p99 is 1.5 times that without dashboards, or 5 ms more, whichever is more. All loads are measured in turns, %d times %v each, "+
		"while 200 sidecars of 20 label sets report; each answer of external metrics sums over 200 series. The steps of query_range are %v.", dashboardTurns, dashboardTurn, dashboardStep)
}

// panelStats is what dashboards got: how long the answers took that were 200, how many were 503,
// and how many anything else.
type panelStats struct {
	Took            []time.Duration
	Refused, Failed int
}

func (p *panelStats) asked() int { return len(p.Took) + p.Refused + p.Failed }

func (p *panelStats) add(more panelStats) {
	p.Took = append(p.Took, more.Took...)
	p.Refused += more.Refused
	p.Failed += more.Failed
}

// servePanels is dashboards as a process: each asks every five seconds, whether or not it has been
// answered. It answers GET /stats with what they got.
func servePanels(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("panels", flag.ContinueOnError)
	target := f.String("target", "", "base URL of Prometheus' API")
	dashboards := f.Int("dashboards", 100, "how many there are")
	query := f.String("query", "", "what each asks")
	if err := f.Parse(args); err != nil {
		return err
	}
	var mu sync.Mutex
	var seen panelStats
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_ = json.NewEncoder(w).Encode(seen) // the asker has gone
	})
	control, err := serveHTTP(ctx, mux)
	if err != nil {
		return err
	}
	if err := tellServing(standalone.Serving{HTTPS: control}); err != nil {
		return err
	}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: *dashboards}}
	rate := float64(*dashboards) / dashboardRefresh.Seconds()
	traffic.Loop(ctx, time.Now(), traffic.Steady(rate, traffic.Endless), func(int, time.Time) {
		one := askPanel(ctx, client, *target, *query)
		mu.Lock()
		defer mu.Unlock()
		seen.add(one)
	})
	return nil
}

// askPanel asks once, and reads all of the answer.
func askPanel(ctx context.Context, client *http.Client, target, query string) panelStats {
	begin := time.Now()
	form := url.Values{
		"query": {query}, "step": {fmt.Sprint(dashboardStep.Seconds())},
		"start": {fmt.Sprint(begin.Add(-dashboardBack).Unix())}, "end": {fmt.Sprint(begin.Unix())},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target+"/api/v1/query_range", strings.NewReader(form.Encode()))
	if err != nil {
		return panelStats{Failed: 1}
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := client.Do(req)
	if err != nil {
		return panelStats{Failed: 1}
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	switch {
	case err == nil && resp.StatusCode == http.StatusOK:
		return panelStats{Took: []time.Duration{time.Since(begin)}}
	case err == nil && resp.StatusCode == http.StatusServiceUnavailable:
		return panelStats{Refused: 1}
	}
	return panelStats{Failed: 1}
}
