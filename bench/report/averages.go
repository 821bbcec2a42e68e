package main

import (
	"context"
	"fmt"
	"math"

	"github.com/meshpulse/meshpulse/bench/durations"
)

// averageSteps are single requests of 1 to 1000 ms, each a series of its own: every whole number
// below 100, then the first and the last of each bin.
func averageSteps() []*cell {
	var cells []*cell
	for i := 0; averageStep(i) <= 1000; i++ {
		cells = append(cells, &cell{source: fmt.Sprintf("average.%v", averageStep(i))})
	}
	return cells
}

func averageStep(i int) float64 {
	if i < 99 {
		return float64(i + 1)
	}
	return float64(100 + 10*((i-99)/2) + 9*((i-99)%2))
}

// averages asks for _sum/_count.
func (run *exactRun) averages(ctx context.Context, cells []*cell) (map[*cell]float64, error) {
	all := map[*cell]float64{}
	for _, c := range cells {
		got, err := run.queries.ask(ctx, run.server, averageExpr(c))
		if err != nil {
			return nil, err
		}
		all[c] = got
	}
	return all, nil
}

// averagesTold holds _sum/_count against the durations: Envoy's sum adds 2ab/(a+b) for a request
// whose bin is [a, b), and durations are cut to whole milliseconds before.
func averagesTold(t *table, cells, steps []*cell, got map[*cell]float64) {
	t.body.WriteString("## Averages\n\n`_sum/_count` of single durations, against the milliseconds that were recorded, and against durations spread evenly over " +
		"the time that is recorded alike (1 ms: 1 to 2 ms; 100 to 109 ms: 100 to 110 ms).\n\n" +
		"| recorded | least, most against what was recorded | mean against durations before they were cut | worst error of 2ab/(a+b) |\n|---|--:|--:|--:|\n")
	for _, band := range []struct{ from, to float64 }{{1, 9}, {10, 99}, {100, 999}} {
		least, most, bias, model, n := math.Inf(1), math.Inf(-1), 0.0, 0.0, 0.0
		for i, c := range steps {
			v := averageStep(i)
			if v < band.from || v > band.to {
				continue
			}
			from, to := durations.Edges(durations.BinOf(v))
			least, most = min(least, got[c]-v), max(most, got[c]-v)
			model = max(model, math.Abs(got[c]-2*from*to/(from+to)))
			bias += got[c] - max((from+to)/2, from+0.5)
			n++
		}
		name := fmt.Sprintf("%.0f to %.0f ms", band.from, band.to)
		fmt.Fprintf(&t.body, "| %s | %+.3f to %+.3f ms | %+.3f ms | %.4f ms |\n", name, least, most, bias/n, model)
		t.add("average, "+name+": mean against durations before they were cut", bias/n, "ms", "higher")
		t.add("average, "+name+": most against what was recorded", most, "ms", "lower")
		t.add("average, "+name+": least against what was recorded", least, "ms", "higher")
	}
	t.body.WriteString("\n| latencies | sent to | `_sum/_count` | mean before it was cut | off |\n|---|---|--:|--:|--:|\n")
	for _, c := range cells {
		truth := c.sent.Exact / c.sent.Count
		fmt.Fprintf(&t.body, "| %s | %s | %.2f | %.2f | %+.2f %% |\n", c.latency, c.over, got[c], truth, 100*(got[c]/truth-1))
		t.add(fmt.Sprintf("average, %s, %s: off", c.latency, c.over), 100*math.Abs(got[c]/truth-1), "%", "lower")
	}
	t.body.WriteString("\n")
}
