package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// figure is a row that a Go benchmark gives.
type figure struct {
	benchmark, unit string // as go test prints them
	name            string
	scale           float64
	to              string
	goal            float64 // 0: none
	better          string
}

// figures are the benchmarks beside the code that the table shows.
var figures = []figure{
	{"Query/shape=sum-rate/series=5000/by=plan", "cpu-ns/op", "sum(rate(istio_requests_total{…}[1m])) over 5,000 series: compiled, CPU", 1e-6, "ms", .3, "lower"},
	{"Query/shape=sum-rate/series=5000/by=answer", "cpu-ns/op", "the same with its coverage (Query.Eval), CPU", 1e-6, "ms", 0, "lower"},
	{"Query/shape=sum-rate/series=5000/by=engine", "cpu-ns/op", "the same by the engine, CPU", 1e-6, "ms", 0, "lower"},
	{"Query/shape=quantile-classic/series=1000/by=plan", "cpu-ns/op", "histogram_quantile(0.95, sum(rate(…_bucket{…}[1m])) by (le)) over 1,000 histograms: compiled, CPU", 1e-6, "ms", .5, "lower"},
	{"Query/shape=quantile-classic/series=1000/by=engine", "cpu-ns/op", "the same by the engine, CPU", 1e-6, "ms", 0, "lower"},
	{"Query/shape=quantile-fine/series=1000/by=plan", "cpu-ns/op", "the same on the finer view: compiled, CPU", 1e-6, "ms", 2, "lower"},
	{"Query/shape=quantile-fine/series=1000/by=engine", "cpu-ns/op", "the same on the finer view by the engine, CPU", 1e-6, "ms", 0, "lower"},
	{"NewPod/labelsets=new", "cpu-ns/op", "a new pod of 20 label sets, 1,000 queries registered, CPU", 1e-6, "ms", 2, "lower"},
	{"NewPod/labelsets=known", "cpu-ns/op", "the same, its label sets known from another pod, CPU", 1e-6, "ms", .5, "lower"},
	{"Memory/kind=counter", "B/series", "memory of a counter, all in", 1. / 1024, "KiB", .9, "lower"},
	{"Memory/kind=histogram", "B/series", "memory of a plain histogram, all in", 1. / 1024, "KiB", 6.5, "lower"},
	{"Memory/kind=duration", "B/series", "memory of a duration histogram with its finer view, all in", 1. / 1024, "KiB", 8, "lower"},
	{"Memory/kind=kept", "B/series", "memory of a label set as it is kept by default: a counter, a duration histogram with its finer view", 1. / 1024, "KiB", 8, "lower"},
	{"Memory/kind=labelset", "B/series", "the same with two plain histograms of sizes, which an HPA asks for", 1. / 1024, "KiB", 0, "lower"},
	{"Commit", "cpu-ns/op", "store alone: a flush of 20 label sets, CPU", 1e-3, "us", 0, "lower"},
	{"Message/naming=stock", "cpu-ns/op", "scan and store: a flush of 20 label sets, stock naming, CPU", 1e-3, "us", 0, "lower"},
	{"Message/naming=labels", "cpu-ns/op", "scan and store: a flush of 20 label sets, tags as labels, CPU", 1e-3, "us", 0, "lower"},
}

// codeRows run the Go benchmarks beside the code.
func codeRows(ctx context.Context, s settings, t *table) error {
	out := ""
	for _, group := range []struct {
		pattern, time string
		runs          int // where CPU counts the best of three: the machine makes it more, never less
	}{{"Query|Commit|Message", "0.3s", 3}, {"Memory", "1x", 1}, {"NewPod", "200x", 3}, {"Writers", "2s", 1}} {
		o, err := goBench(ctx, s, group.pattern, group.time, group.runs)
		if err != nil {
			return err
		}
		out += o
	}
	return codeTold(t, out)
}

// codeTold tells what go test has printed of the benchmarks.
func codeTold(t *table, out string) error {
	found := parseBenchmarks(out)
	for _, f := range figures {
		v, ok := found[f.benchmark][f.unit]
		switch {
		case !ok:
			return fmt.Errorf("benchmark %s gives no %s:\n%s", f.benchmark, f.unit, out)
		case f.goal > 0:
			t.atMost(f.name, v*f.scale, f.to, f.goal)
		default:
			t.add(f.name, v*f.scale, f.to, f.better)
		}
	}
	for _, readers := range []int{0, 1, 4, 16} {
		v := found[fmt.Sprintf("Writers/readers=%d", readers)]
		what := fmt.Sprintf("one writer under %d readers, each 100 times a second, ", readers)
		for _, store := range []string{"lockfree", "mutex"} {
			t.add(what+store+": flushes of 20 label sets", v[store+"-flushes/s"], "1/s", "higher")
			t.add(what+store+": p99 of a commit", v[store+"-p99-us"], "us", "lower")
			t.add(what+store+": p99.9 of a commit", v[store+"-p99.9-us"], "us", "lower")
		}
		t.add(what+"reads of 1,000 series", v["reads/s"], "1/s", "higher")
	}
	return nil
}

// goBench runs benchmarks of the packages and keeps their output for benchstat.
func goBench(ctx context.Context, s settings, pattern, benchtime string, runs int) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^Benchmark("+pattern+")$", "-benchtime", benchtime, "-count", strconv.Itoa(runs),
		"-timeout", "5m", "./aggregator", "./envoystats", "./metricsapi")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	fmt.Fprint(os.Stderr, string(out))
	name := strings.NewReplacer("|", "-").Replace(pattern)
	return string(out), os.WriteFile(filepath.Join(s.work, "go-"+name+".txt"), out, 0o600)
}

// parseBenchmarks reads what go test prints: by name without Benchmark and -CPUS, then by unit. Of
// several runs of one it takes that with the least CPU.
func parseBenchmarks(out string) map[string]map[string]float64 {
	found := map[string]map[string]float64{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(f[0], "Benchmark")
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			if _, err := strconv.Atoi(name[i+1:]); err == nil {
				name = name[:i]
			}
		}
		units := map[string]float64{}
		for i := 2; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				units[f[i+1]] = v
			}
		}
		if before, ok := found[name]["cpu-ns/op"]; ok && before <= units["cpu-ns/op"] {
			continue
		}
		found[name] = units
	}
	return found
}
