package main

import (
	"maps"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/bench/durations"
	"github.com/meshpulse/meshpulse/bench/fleet"
	"github.com/meshpulse/meshpulse/bench/process"
)

const us = time.Microsecond

func TestCostIsPerFlushBetweenTwoReadings(t *testing.T) {
	at := time.Unix(1000, 0)
	a := reading{
		at: at, receiver: process.Usage{CPU: 2 * time.Second}, sender: process.Usage{CPU: time.Second},
		fleet: fleet.Stats{Flushes: 100, Bytes: 1000, Failed: 1, LateMs: 9},
	}
	b := reading{
		at: at.Add(10 * time.Second), receiver: process.Usage{CPU: 5 * time.Second, Resident: 70, Peak: 90, Anonymous: 40}, sender: process.Usage{CPU: 2 * time.Second},
		fleet: fleet.Stats{Flushes: 300, Bytes: 31_000, Failed: 4, LateMs: 6},
	}
	got, err := between(a, b)
	if err != nil {
		t.Fatal(err)
	}
	want := cost{
		flushes: 200, receiver: 15 * time.Millisecond, sender: 5 * time.Millisecond, resident: 70, anonymous: 40,
		flushBytes: 150, lateMs: 6, failed: 4, receiverShare: 0.3, measured: 10,
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := between(a, a); err == nil {
		t.Error("a time without a flush has a cost")
	}
}

func TestScrapesCostWhatPrometheusUsedBetween(t *testing.T) {
	got, err := scrapedCost(process.Usage{CPU: time.Second, Resident: 5}, process.Usage{CPU: 3 * time.Second, Resident: 700, Anonymous: 500}, 400, 20*time.Second)
	want := cost{flushes: 400, receiver: 5 * time.Millisecond, measured: 20, receiverShare: 0.1, resident: 700, anonymous: 500}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := scrapedCost(process.Usage{}, process.Usage{}, 0, time.Second); err == nil {
		t.Error("nothing scraped has a cost")
	}
}

func TestIngestIsHeldAgainstTheNullSink(t *testing.T) {
	floor := cost{receiver: 200 * us, failed: 1}
	own := cost{receiver: 300 * us, resident: 96 << 20, flushBytes: 142 << 10, sender: 50 * us, failed: 2, measured: 15.2}
	const what = "ingest CPU, 1,000 streams of 20 label sets, x: "
	run := func(us200 time.Duration, failed int64) []cost {
		slow := own
		slow.receiver, slow.failed = us200*us, failed
		return []cost{floor, slow}
	}
	tab := &table{}
	ingestTold(tab, ingestLoad{name: "x", goal: 1.5}, [][]cost{run(290, 0), run(340, 2), run(300, 0), run(320, 1), run(280, 0)})
	want := map[string]string{"null sink": "200 us/flush lower", "meshpulse": "300 us/flush lower", "ratio": "1.50 x lower <= 1.50 yes"}
	with := maps.Clone(want)
	with["memory, 1,000 streams of 20 label sets, half a minute old: RSS of meshpulse"] = "96 MiB lower"
	hold(t, tab, what, with)
	if notes := strings.Join(tab.Notes, "\n"); !strings.Contains(notes, "A flush is 142 KB. The sender used 50µs") || !strings.Contains(notes, "x: 3 flushes could not be sent") ||
		!strings.Contains(notes, "median of 5 runs of 15s, which were 1.40 to 1.70") {
		t.Errorf("notes: %s", notes)
	}
	tab = &table{}
	ingestTold(tab, ingestLoad{name: "x"}, [][]cost{{floor, own}})
	want["ratio"] = "1.50 x lower"
	hold(t, tab, what, want)

	tab = &table{}
	fiveThousandTold(tab, floor, own)
	hold(t, tab, "ingest CPU, 5,000 streams of 20 label sets, stock naming, plaintext: ", map[string]string{
		"null sink": "200 us/flush lower",
		"meshpulse": "300 us/flush lower <= 250 NO",
		"ratio":     "1.50 x lower",
		"memory, 5,000 streams of 20 label sets, half a minute old: RSS of meshpulse": "96 MiB lower",
	})
	if notes := strings.Join(tab.Notes, "\n"); !strings.Contains(notes, "5,000 streams: 3 flushes could not be sent") {
		t.Errorf("notes: %s", notes)
	}
}

func TestEachLoadIsHeldToItsOwnGoal(t *testing.T) {
	goals := map[string]float64{}
	for _, l := range ingestLoads {
		goals[l.name] = l.goal
		if l.load.pods != 1000 || l.load.labelSets != 20 || l.load.interval != 5*time.Second || l.load.tls != strings.Contains(l.name, "TLS") ||
			l.load.labels != strings.Contains(l.name, "labels") {
			t.Errorf("%s: %+v", l.name, l.load)
		}
	}
	want := map[string]float64{"stock naming, plaintext": 1.5, "stock naming, TLS": 0, "tags as labels, plaintext": 0}
	if diff := cmp.Diff(want, goals); diff != "" {
		t.Error(diff)
	}
}

func TestActingIsWhatIsAddedToIngestWithoutHPAs(t *testing.T) {
	tab := &table{}
	actingTold(tab, 200*us, 210*us, 224*us)
	hold(t, tab, "acting at surges, 5,000 streams of 20 label sets, 1,000 HPAs of 5 pods: CPU ", map[string]string{
		"of ingest without HPAs":                        "200 us/flush lower",
		"with HPAs of which none acts":                  "210 us/flush lower",
		"with HPAs that all act":                        "224 us/flush lower",
		"that HPAs add of which none acts, of ingest's": "5 % lower",
		"that marking and evaluating add, of ingest's":  "12 % lower <= 10 NO",
	})
}

func TestPrometheusIsDividedByMeshpulse(t *testing.T) {
	theirs := cost{receiver: 6000 * us, resident: 600 << 20, anonymous: 500 << 20, idle: 100 << 20, measured: 60}
	own := cost{receiver: 250 * us, resident: 120 << 20, anonymous: 60 << 20, idle: 20 << 20}
	floor := cost{receiver: 150 * us}
	tab := &table{}
	busyBeside.told(tab, theirs, own, floor)
	hold(t, tab, "100 sidecars of 20 label sets every 5 s: ", map[string]string{
		"CPU of Prometheus":                                    "6000 us/scrape lower",
		"CPU of meshpulse":                                     "250 us/flush lower",
		"CPU of the null sink":                                 "150 us/flush lower",
		"Prometheus' CPU over meshpulse's":                     "24 x higher >= 30 NO",
		"RSS of Prometheus":                                    "600 MiB lower",
		"RSS of meshpulse":                                     "120 MiB lower",
		"Prometheus' RSS over meshpulse's":                     "5 x higher >= 5 yes",
		"of Prometheus' RSS, not pages of files":               "500 MiB lower",
		"of meshpulse's RSS, not pages of files":               "60 MiB lower",
		"Prometheus' over meshpulse's, without pages of files": "8.33 x higher >= 13 NO",
		// 400 and 40 MiB over 100 times 20 label sets.
		"what a label set takes of Prometheus":                                               "205 KiB lower",
		"what a label set takes of meshpulse, its part of the sidecar's connection included": "20.5 KiB lower",
		"a label set's memory, Prometheus' over meshpulse's":                                 "10 x higher >= 10 yes",
	})
	if !strings.Contains(tab.Notes[0], "Memory was taken after 420 s") {
		t.Errorf("note: %s", tab.Notes[0])
	}
	tab = &table{}
	zipfBeside.told(tab, theirs, own, floor)
	holdSome(t, tab, "100 sidecars of 20 label sets of which 8 move in a flush, every 5 s: ", map[string]string{
		"Prometheus' CPU over meshpulse's":                                                   "24 x higher",
		"Prometheus' RSS over meshpulse's":                                                   "5 x higher",
		"what a label set takes of meshpulse, its part of the sidecar's connection included": "20.5 KiB lower <= 3 NO",
		"a label set's memory, Prometheus' over meshpulse's":                                 "10 x higher >= 40 NO",
	})
	for _, b := range []besidePrometheus{busyBeside, zipfBeside} {
		if l := b.load(); l.pods != 100 || l.labelSets != 20 || l.busiest != b.busiest {
			t.Errorf("%s: %+v", b.name, l)
		}
	}
}

func TestALabelSetTakesWhatTheLoadAdded(t *testing.T) {
	own := cost{receiver: 300 * us, resident: 600 << 20, anonymous: 520 << 20, idle: 20 << 20}
	tab := &table{}
	zipfFullTold(tab, load{pods: 5000, labelSets: 20}, own)
	hold(t, tab, "5,000 streams of 20 label sets of which 8 move in a flush, rings full: ", map[string]string{
		"CPU of meshpulse": "300 us/flush lower",
		"RSS of meshpulse": "600 MiB lower <= 570 NO",
		"what a label set takes of meshpulse, its part of the sidecar's connection included": "5.12 KiB lower",
	})
	tab = &table{}
	gatewayTold(tab, load{pods: 1, labelSets: 2000}, cost{receiver: 4000 * us, anonymous: 30 << 20, idle: 20 << 20}, cost{receiver: 2000 * us})
	hold(t, tab, "a gateway of 2,000 label sets of which 50 move in a flush, rings full: ", map[string]string{
		"CPU of the null sink": "2000 us/flush lower",
		"CPU of meshpulse":     "4000 us/flush lower",
		"what a label set takes of meshpulse, its part of the sidecar's connection included": "5.12 KiB lower",
	})
}

func TestAnswersAreHeldAgainstAConstantAtTheSameQuantile(t *testing.T) {
	latencies := func(step time.Duration) (all []time.Duration) {
		for i := range 200 {
			all = append(all, time.Duration(i)*step)
		}
		return all
	}
	tab := &table{}
	apiTold(tab, latencies(16*us), latencies(10*us))
	hold(t, tab, "external metrics GET, 1,000 HPAs, 100 requests/s: ", map[string]string{
		"p50 of a constant answer": "1 ms lower",
		"p50 of meshpulse":         "1.60 ms lower",
		"p99 of a constant answer": "1.98 ms lower",
		"p99 of meshpulse":         "3.17 ms lower",
		"ratio of p99":             "1.60 x lower <= 1.50 NO",
	})
	if got := quantile([]time.Duration{1, 2}, 1); got != 2 {
		t.Errorf("the highest of two: got %d", got)
	}
}

func TestBenchmarksAreReadByNameAndTheBestOfRunsCounts(t *testing.T) {
	got := parseBenchmarks(`goos: linux
BenchmarkQuery/by=plan-2         100   9 ns/op   500 cpu-ns/op
BenchmarkQuery/by=plan-2         100   9 ns/op   400 cpu-ns/op
BenchmarkQuery/by=plan-2         100   9 ns/op   450 cpu-ns/op
BenchmarkMemory/kind=counter-2   1     9 ns/op   921.6 B/series
BenchmarkCommit-16               100   9 ns/op   7000 cpu-ns/op
BenchmarkCommit/a-b              100   9 ns/op   3 cpu-ns/op
PASS
`)
	want := map[string]map[string]float64{
		"Query/by=plan": {"ns/op": 9, "cpu-ns/op": 400}, "Memory/kind=counter": {"ns/op": 9, "B/series": 921.6},
		"Commit": {"ns/op": 9, "cpu-ns/op": 7000}, "Commit/a-b": {"ns/op": 9, "cpu-ns/op": 3},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Each figure is scaled to its unit, and one that a benchmark does not give is missed and not 0.
func TestFiguresAreThoseOfTheirBenchmarks(t *testing.T) {
	var out strings.Builder
	for _, f := range figures {
		out.WriteString("Benchmark" + f.benchmark + "-2 1 2000000 " + f.unit + "\n")
	}
	out.WriteString("BenchmarkWriters/readers=4-2 1 11 lockfree-flushes/s 12 lockfree-p99-us 13 lockfree-p99.9-us 21 mutex-flushes/s 22 mutex-p99-us 23 mutex-p99.9-us 31 reads/s\n")
	tab := &table{}
	if err := codeTold(tab, out.String()); err != nil {
		t.Fatal(err)
	}
	holdSome(t, tab, "", map[string]string{
		"sum(rate(istio_requests_total{…}[1m])) over 5,000 series: compiled, CPU":                 "2 ms lower <= 0.3 NO",
		"the same on the finer view: compiled, CPU":                                               "2 ms lower <= 2 yes",
		"memory of a counter, all in":                                                             "1953 KiB lower <= 0.9 NO",
		"store alone: a flush of 20 label sets, CPU":                                              "2000 us lower",
		"one writer under 4 readers, each 100 times a second, lockfree: flushes of 20 label sets": "11 1/s higher",
		"one writer under 4 readers, each 100 times a second, mutex: p99 of a commit":             "22 us lower",
		"one writer under 4 readers, each 100 times a second, mutex: p99.9 of a commit":           "23 us lower",
		"one writer under 4 readers, each 100 times a second, reads of 1,000 series":              "31 1/s higher",
	})
	without := strings.Replace(out.String(), "BenchmarkCommit-2 1 2000000 cpu-ns/op", "BenchmarkCommit-2 1 2000000 ns/op", 1)
	if err := codeTold(&table{}, without); err == nil || !strings.Contains(err.Error(), "benchmark Commit gives no cpu-ns/op") {
		t.Errorf("a benchmark that gives no figure: %v", err)
	}
}

func TestCountersGrowOverResets(t *testing.T) {
	for want, samples := range map[float64][]float64{0: nil, 12: {3, 10, 15}, 19: {3, 10, 4, 8, 0, 4}, 0.5: {1, 1, 1.5}} {
		if got := grown(samples); got != want {
			t.Errorf("%v: got %v, want %v", samples, got, want)
		}
	}
	if got := grown([]float64{7}); got != 0 {
		t.Errorf("a counter that was seen once has grown by %v", got)
	}
}

func TestBothAreHeldAgainstWhatWasAnsweredAndInCalmMinutesAgainstEachOther(t *testing.T) {
	run := []counted{{"steady", 1000, 990, 950}}
	var answers []besideAnswer
	for _, w := range besideWorkloads {
		answers = append(answers,
			besideAnswer{workload: w, own: 103, prometheus: 100, calm: true},
			besideAnswer{workload: w, own: 101, prometheus: 100, calm: true},
			besideAnswer{workload: w, own: 500, prometheus: 100})
	}
	tab := &table{}
	if err := besideTold(tab, run, answers); err != nil {
		t.Fatal(err)
	}
	holdSome(t, tab, "steady: ", map[string]string{
		"requests of the run that meshpulse has not counted":                            "10 requests lower",
		"requests of the run that Prometheus has not counted":                           "50 requests lower",
		"increase(…[1m]) outside of joins and restarts, meshpulse and Prometheus apart": "2.00 % lower <= 1 NO",
		"the same, worst single answer":                                                 "3.00 % lower",
	})
	for _, want := range []string{"| steady | 1000 | 990 (-1.00 %) | 950 (-5.00 %) |", "| steady | 2 | 204.0 | 200.0 | 2.00 % | 3.00 % |"} {
		if !strings.Contains(tab.body.String(), want) {
			t.Errorf("the page lacks %q:\n%s", want, tab.body.String())
		}
	}
	if err := besideTold(&table{}, run, answers[1:3]); err == nil {
		t.Error("a workload without a calm minute is compared")
	}
}

// A minute is calm that no join, restart or end of a pod reaches, with what the window and a flush
// or two before it hold.
func TestAMinuteAfterSomethingHappenedIsNotCalm(t *testing.T) {
	b := &beside{pods: besidePods()}
	for _, tc := range []struct {
		workload string
		at       time.Duration
		want     bool
	}{
		{"steady", 74 * time.Second, false}, // they have all just begun
		{"steady", 75 * time.Second, true},
		{"joining", 136 * time.Second, false},
		{"joining", 62*time.Second + 74*time.Second, false},
		{"joining", 123*time.Second + 75*time.Second, true},
		{"leaving", 121*time.Second + 74*time.Second, false},
		{"leaving", 121*time.Second + 75*time.Second, true},
		{"restarting", 122*time.Second + 75*time.Second, true},
		{"restarting", 63*time.Second + 10*time.Second, false},
	} {
		if got := b.calm(tc.workload, tc.at); got != tc.want {
			t.Errorf("%s at %s: calm %v", tc.workload, tc.at, got)
		}
	}
}

func TestOffIsAShareOfTheEdgeThatWasMissed(t *testing.T) {
	for _, tc := range []struct{ v, from, to, want float64 }{{10, 10, 20, 0}, {20, 10, 20, 0}, {15, 10, 20, 0}, {5, 10, 20, -0.5}, {30, 10, 20, 0.5}} {
		if got := off(tc.v, tc.from, tc.to); got != tc.want {
			t.Errorf("%v in %v to %v: got %v, want %v", tc.v, tc.from, tc.to, got, tc.want)
		}
	}
}

// recorded is a cell of 1,000 requests of 1 to 1,000 ms.
func recorded(latency string, coarse bool) *cell {
	c := &cell{latency: latency, over: "one pod", bounds: []float64{100, 250, 500, 1000}, coarse: coarse}
	for ms := range 1000 {
		c.sent.Record(float64(ms + 1))
	}
	return c
}

func TestQuantilesAreHeldWithinWhatWasRecorded(t *testing.T) {
	even, coarse := recorded("even", false), recorded("coarse", true)
	from, to := even.sent.Within(0.9)
	bin, _ := even.sent.At(0.9)
	a, b := durations.Edges(bin)
	m := estimate{even, 0.9, 1.2 * to, from}.misses()
	if want := (misses{true, from, to, 1.2*to/to - 1, 0, 1.2*to/b - 1, off(from, a, b)}); m != want || !(from <= a && b <= to) {
		t.Errorf("got %+v, want %+v", m, want)
	}
	tab := &table{}
	quantilesTold(tab, []estimate{
		{even, 0.5, 500, 700},      // the finer view holds, buckets do not
		{even, 0.9, 1.2 * to, 900}, // the other way round
		{coarse, 0.5, 1e6, 500},    // nothing is promised
	})
	hold(t, tab, "", map[string]string{
		"P50, even, one pod: outside of its bounds": "0 % lower <= 0 yes",
		"P90, even, one pod: outside of its bounds": "20.0 % lower <= 0 NO",
		"quantiles with a bound":                    "2  higher",
		"of them outside of it: finer view":         "1  lower <= 0 NO",
		"of them outside of it: classic buckets":    "1  lower",
		"finer view, worst":                         "20.0 % lower <= 0 NO",
	})
	page := tab.body.String()
	for _, want := range []string{
		"2 quantiles have a bound: the finer view misses 1, classic buckets 1.", "| 1.2", "**+20.0 %**", "| no bound | 500 | no bound |",
		"- P90 of even, one pod:", "- P50 of coarse, one pod:",
	} {
		if want != "| 1.2" && !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "- P50 of even") {
		t.Errorf("the finer view is said to be farther off where it is nearer:\n%s", page)
	}
}

func TestAveragesAreHeldAgainstWhatWasRecordedAndWhatWasCut(t *testing.T) {
	steps := averageSteps()
	got := map[*cell]float64{}
	for i, c := range steps { // as Envoy adds: the harmonic mean of the bin's edges
		from, to := durations.Edges(durations.BinOf(averageStep(i)))
		got[c] = 2 * from * to / (from + to)
	}
	got[steps[4]] += 0.25 // 5 ms
	c := recorded("even", false)
	c.sent.Record(7.9) // which is cut to 7
	got[c] = 1.1 * c.sent.Exact / c.sent.Count
	tab := &table{}
	averagesTold(tab, []*cell{c}, steps, got)
	rows := map[string]row{}
	for _, r := range tab.Rows {
		rows[r.Name] = r
	}
	if v := rows["average, even, one pod: off"].Value; math.Abs(v-10) > 1e-9 {
		t.Errorf("an average that is a tenth too high is off by %v %%", v)
	}
	var most, least, bias float64 = math.Inf(-1), math.Inf(1), 0
	for i := range 9 {
		v := float64(i + 1)
		most, least = max(most, got[steps[i]]-v), min(least, got[steps[i]]-v)
		bias += (got[steps[i]] - v - 0.5) / 9 // recorded as v is what lasted v to v+1
	}
	for name, want := range map[string]float64{
		"average, 1 to 9 ms: most against what was recorded":              most,
		"average, 1 to 9 ms: least against what was recorded":             least,
		"average, 1 to 9 ms: mean against durations before they were cut": bias,
	} {
		if v := rows[name].Value; math.Abs(v-want) > 1e-9 {
			t.Errorf("%s: got %v, want %v", name, v, want)
		}
	}
	page := tab.body.String()
	for _, want := range []string{"| 0.2500 ms |", "| 10 to 99 ms |", "| 100 to 999 ms |", "+10.00 % |"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if strings.Count(page, "| 0.0000 ms |") != 2 {
		t.Errorf("2ab/(a+b) is not the model of the other two bands:\n%s", page)
	}
}

func TestASoakIsHeldToWhatItHadBefore(t *testing.T) {
	k := soakSettings{duration: 10 * time.Minute, pods: 5000, labelSets: 20}
	tab := &table{}
	soakTold(tab, k, soaked{
		oldest: 16 * time.Second, steadyAge: 9 * time.Second, lost: 3, heap: heaps{100 << 20, 105 << 20, 107 << 20}, streams: 4999,
		fleet:     fleet.Stats{Flushes: 1000, Failed: 250, Replaced: 30, Restarted: 12, LastError: "broken"},
		meshpulse: process.Usage{CPU: 250 * time.Millisecond, Resident: 900 << 20, Peak: 950 << 20}, sender: process.Usage{CPU: 200 * time.Millisecond},
	})
	hold(t, tab, "soak, 5000 streams of 20 label sets for 10m0s: ", map[string]string{
		"streams open at the end":                                      "4999  higher >= 5000 NO",
		"flushes that could not be sent":                               "250  lower <= 0 NO",
		"flushes sent that did not arrive":                             "3  lower <= 0 NO",
		"flushes":                                                      "1000  higher",
		"pods replaced, Envoys restarted":                              "42  higher",
		"live heap at the end over that in the middle":                 "1.05 x lower <= 1.05 yes",
		"live heap after all have reconnected over that in the middle": "1.07 x lower <= 1.05 NO",
		"live heap at the end":                                         "105 MiB lower",
		"RSS":                                                          "900 MiB lower",
		"peak RSS":                                                     "950 MiB lower",
		"greatest age of the newest sample":                            "9 s lower <= 10 yes",
		"greatest age of the newest sample while all reconnect":        "16 s lower <= 15 NO",
		"CPU of meshpulse":                                             "250 us/flush lower",
		"CPU of the sender":                                            "200 us/flush lower",
	})
	if !strings.Contains(strings.Join(tab.Notes, "\n"), "broken") {
		t.Errorf("notes: %q", tab.Notes)
	}
}

func TestAFlushOfEachSidecarThatHasGoneMayBeMissing(t *testing.T) {
	sent := fleet.Stats{Flushes: 1000, Replaced: 3, Restarted: 2}
	for read, want := range map[int64]int64{1000: 0, 995: 0, 994: 1, 1001: 0} {
		if got := missing(sent, read); got != want {
			t.Errorf("%d of 1000 read: got %d, want %d", read, got, want)
		}
	}
}

// What hangs up in a flush's time may be away twice over.
func TestAFleetIsSteadyWithoutThoseThatChurnKeepsAway(t *testing.T) {
	if got := (load{churn: 120, interval: 5 * time.Second}).away(); got != 20 {
		t.Errorf("got %d, want 20", got)
	}
}
