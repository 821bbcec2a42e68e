package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/meshpulse/meshpulse/bench/surge"
)

// surgeStudy is what the study of surges does: steady traffic for days, steps, faults. Seeds are
// fixed.
type surgeStudy struct {
	days   float64 // of steady traffic of each kind at each flush interval
	runs   int     // of each step
	faults int     // at each flush interval

	results string // the folder that takes them

	mu     sync.Mutex // below: of the workers
	alarms []surge.Alarms
	told   map[surge.Cell]map[surge.Rise][]surge.Told
	hit    []string // faults that a surge followed
	struck int
	failed error
}

var (
	surgeFlushes = [...]time.Duration{5 * time.Second, time.Second, 2 * time.Second, 10 * time.Second}
	surgeRates   = [...]float64{1, 10, 100, 1000}
	surgeRises   = [...]surge.Rise{{From: 2, To: 60}, {From: 60, To: 120}, {From: 60, To: 180}}
	// surgePods are the pods of a cell and the share of the days that their cells get together: a
	// day of a hundred pods costs as much as one of a single pod a hundred times.
	surgePods = [...]struct {
		pods  int
		share float64
	}{{1, 0.9}, {10, 0.09}, {100, 0.01}}
)

// The whole study is what results are kept of.
const (
	wholeDays   = 40
	wholeRuns   = 10
	wholeFaults = 2500
)

// newSurgeStudy reads the flags.
func newSurgeStudy(args []string) (st *surgeStudy, err error) {
	st = &surgeStudy{told: map[surge.Cell]map[surge.Rise][]surge.Told{}}
	f := flag.NewFlagSet("surge", flag.ContinueOnError)
	f.StringVar(&st.results, "results", "bench/results", "folder that takes the results of a whole study")
	f.Float64Var(&st.days, "days", wholeDays, "simulated days of steady traffic of each kind at each flush interval; of other than the default, and of fewer runs or faults, the results are printed and not kept")
	f.IntVar(&st.runs, "runs", wholeRuns, "runs of each step")
	f.IntVar(&st.faults, "faults", wholeFaults, "faults at each flush interval")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if !(st.days >= 1) {
		return nil, fmt.Errorf("--days %g (DAYS of make surge) is below 1: give 1 or more; %d are a whole study", st.days, wholeDays)
	}
	return st, nil
}

// whole says whether the study is one whose results are kept: none of it was left out.
func (st *surgeStudy) whole(ctx context.Context) bool {
	return st.days == wholeDays && st.runs == wholeRuns && st.faults == wholeFaults && ctx.Err() == nil
}

func runSurge(ctx context.Context, args []string) error {
	st, err := newSurgeStudy(args)
	if err != nil {
		return err
	}
	began := time.Now()
	st.work(ctx)
	if st.failed != nil {
		return st.failed
	}
	t := newTable(fmt.Sprintf("make surge DAYS=%g", st.days), time.Now())
	st.alarmRows(t)
	st.stepRows(t)
	t.atMost("surges told in random faults under constant load (reconnects, gaps, restarts, clock steps, rollouts, load that moves), of "+fmt.Sprint(st.struck), float64(len(st.hit)), "", 0)
	if len(st.hit) > 0 {
		t.note("Faults that a surge followed: %s.", strings.Join(st.hit, ", "))
	}
	t.note("Steady traffic: %g simulated days of each kind at each flush interval; of these 1, 10 and 100 pods have %.0f, %.0f and %.0f %%, and rates of 1, 10, 100 and 1,000 a second equal parts.",
		st.days, 100*surgePods[0].share, 100*surgePods[1].share, 100*surgePods[2].share)
	t.note("A false scale-up is a surge after which the true rate does not rise by a quarter over the minute before, within a minute. Gamma and lognormal traffic: the rate of all pods drawn anew every flush interval, noise about a rate that does not change; correlated traffic wanders (sigma 0.3), and that is its true rate.")
	t.note("Steps: ten minutes of history, then the rate rises. Seen: the row that triggers. Whole: an answer that asks for all replicas (target 10 a second). Overshoot: the most replicas asked for over those needed, the ceiling of the new rate over the target, limits off.")
	if ctx.Err() != nil {
		t.note("The run was ended early: the days that count are those of the rows.")
	}
	t.note("It took %s.", time.Since(began).Round(time.Second))
	fmt.Print(t.markdown())
	if !st.whole(ctx) {
		return nil
	}
	return t.write(st.results, "surge")
}

// work runs all jobs, as many at a time as there are processors.
func (st *surgeStudy) work(ctx context.Context) {
	var jobs []func() error
	for _, flush := range surgeFlushes {
		for _, kind := range surge.Kinds() {
			jobs = append(jobs, st.stepJobs(kind, flush)...)
		}
		for seed := range uint64(max(1, st.faults/25)) {
			jobs = append(jobs, func() error { return st.strike(flush, seed) })
		}
	}
	for round := range surgeRounds { // one that is ended early has a part of the days of all cells
		for _, flush := range surgeFlushes {
			for _, kind := range surge.Kinds()[1:] { // noise is what is asked about
				jobs = append(jobs, st.dayJobs(kind, flush, round)...)
			}
		}
	}
	queue := make(chan func() error)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for job := range queue {
				if err := job(); err != nil {
					st.mu.Lock()
					st.failed = errors.Join(st.failed, err)
					st.mu.Unlock()
				}
			}
		})
	}
	last := time.Now()
	for i, job := range jobs {
		if ctx.Err() != nil {
			break
		}
		if time.Since(last) > 20*time.Second {
			last = time.Now()
			fmt.Fprintf(os.Stderr, "%s: %d of %d parts\n", last.Format(time.TimeOnly), i, len(jobs))
		}
		queue <- job
	}
	close(queue)
	workers.Wait()
}

// surgeRounds is in how many parts the days of a cell are simulated, each with pods that begin
// anew.
const surgeRounds = 4

// dayJobs are a round of the days of a kind of traffic at a flush interval.
func (st *surgeStudy) dayJobs(kind surge.Kind, flush time.Duration, round int) (jobs []func() error) {
	for i, p := range surgePods {
		for j, rate := range surgeRates {
			c := surge.Cell{Kind: kind, Pods: p.pods, Flush: flush, Rate: rate}
			days := st.days * p.share / float64(len(surgeRates)*surgeRounds)
			jobs = append(jobs, func() error { return st.steady(c, days, uint64(100*round+10*i+j+1)) })
		}
	}
	return jobs
}

// stepJobs are the steps of a kind of traffic at a flush interval.
func (st *surgeStudy) stepJobs(kind surge.Kind, flush time.Duration) (jobs []func() error) {
	for i, p := range surgePods {
		c := surge.Cell{Kind: kind, Pods: p.pods, Flush: flush}
		for _, rise := range surgeRises {
			for seed := range uint64(max(1, st.runs/(1+3*i/2))) { // as few of many pods as days
				jobs = append(jobs, func() error { return st.step(c, rise, seed) })
			}
		}
	}
	return jobs
}

func (st *surgeStudy) steady(c surge.Cell, days float64, seed uint64) error {
	a, err := surge.Steady(c, days, seed)
	st.mu.Lock()
	defer st.mu.Unlock()
	st.alarms = append(st.alarms, a)
	return err
}

func (st *surgeStudy) step(c surge.Cell, rise surge.Rise, seed uint64) error {
	told, err := surge.Rises(c, rise, seed)
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.told[c] == nil {
		st.told[c] = map[surge.Rise][]surge.Told{}
	}
	st.told[c][rise] = append(st.told[c][rise], told)
	return err
}

func (st *surgeStudy) strike(flush time.Duration, seed uint64) error {
	n, hit, err := surge.Faults(flush, 25, seed)
	st.mu.Lock()
	defer st.mu.Unlock()
	st.struck += n
	st.hit = append(st.hit, hit...)
	return err
}

// alarmRows are the false scale-ups a day, pooled, and the cells that had any.
func (st *surgeStudy) alarmRows(t *table) {
	cells := map[surge.Cell]surge.Alarms{}
	for _, a := range st.alarms {
		sum := cells[a.Cell]
		sum.Days, sum.Surges, sum.False = sum.Days+a.Days, sum.Surges+a.Surges, sum.False+a.False
		cells[a.Cell] = sum
	}
	for _, kind := range surge.Kinds()[1:] {
		for _, flush := range surgeFlushes {
			days, wrong, all := 0.0, 0, 0
			for _, a := range st.alarms {
				if a.Kind == kind && a.Flush == flush {
					days, wrong, all = days+a.Days, wrong+a.False, all+a.Surges
				}
			}
			goal := 0.5
			if flush == time.Second {
				goal = 1
			}
			if days == 0 { // ended before it began
				continue
			}
			t.atMost(fmt.Sprintf("false scale-ups a day, %s, flush %s (%d of %d surges in %.1f days)", kind, flush, wrong, all, days), float64(wrong)/days, "/day", goal)
			for _, p := range surgePods {
				for _, rate := range surgeRates {
					c := surge.Cell{Kind: kind, Pods: p.pods, Flush: flush, Rate: rate}
					if a := cells[c]; a.False > 0 {
						t.add(fmt.Sprintf("of these: %s, flush %s, pods %d, rate %g (%d in %.2f days)", kind, flush, c.Pods, c.Rate, a.False, a.Days), float64(a.False)/a.Days, "/day", "lower")
					}
				}
			}
		}
	}
	t.note("Cells that are not listed had no false scale-up.")
}

// stepRows are delays and overshoot.
func (st *surgeStudy) stepRows(t *table) {
	for _, kind := range surge.Kinds() {
		var over []float64
		for _, flush := range surgeFlushes {
			for _, p := range surgePods {
				for _, rise := range surgeRises {
					over = append(over, column(st.told[surge.Cell{Kind: kind, Pods: p.pods, Flush: flush}][rise], func(d surge.Told) float64 { return d.Overshoot })...)
				}
			}
		}
		mean, _ := meanOf(over)
		name := fmt.Sprintf("overshoot, %s, mean over %d steps", kind, len(over))
		if kind == surge.Smooth || kind == surge.Poisson {
			t.atMost(name, mean, "x", 1.25)
		} else {
			t.add(name, mean, "x", "lower")
		}
	}
	for _, rise := range surgeRises {
		for _, kind := range surge.Kinds() {
			for _, flush := range surgeFlushes {
				for _, p := range surgePods {
					st.delayRows(t, surge.Cell{Kind: kind, Pods: p.pods, Flush: flush}, rise)
				}
			}
		}
	}
}

func (st *surgeStudy) delayRows(t *table, c surge.Cell, rise surge.Rise) {
	told := st.told[c][rise]
	seen, missed := meanOf(column(told, func(d surge.Told) float64 { return d.Seen }))
	whole, _ := meanOf(column(told, func(d surge.Told) float64 { return d.Whole }))
	without, _ := meanOf(column(told, func(d surge.Told) float64 { return d.Without }))
	name := fmt.Sprintf("step %g -> %g, %s, flush %s, pods %d", rise.From, rise.To, c.Kind, c.Flush, c.Pods)
	if missed < len(told) {
		t.add(fmt.Sprintf("%s: seen after (%d of %d)", name, len(told)-missed, len(told)), seen, "s", "lower")
	}
	t.add(fmt.Sprintf("%s: asked for whole after (without surge %.1f s)", name, without), whole, "s", "lower")
}

func column(told []surge.Told, of func(surge.Told) float64) []float64 {
	values := make([]float64, len(told))
	for i, d := range told {
		values[i] = of(d)
	}
	return values
}

// meanOf is the mean of the values that there are, and how many are missing.
func meanOf(values []float64) (mean float64, missing int) {
	sum, n := 0.0, 0
	for _, v := range values {
		if math.IsNaN(v) {
			missing++
			continue
		}
		sum += v
		n++
	}
	return sum / float64(max(1, n)), missing
}
