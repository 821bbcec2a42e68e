package explain

import (
	"slices"
	"time"
)

// Doubtful says whether not all is known of a pod that there is to know.
func (s State) Doubtful() bool { return s != StateReporting && s != StateYoung }

// Better says whether more is known of a pod in the one state than in the other.
func (s State) Better(than State) bool {
	return slices.Index(States(), s) > slices.Index(States(), than)
}

// doubts are how many metrics have no value, keep the replicas, or are more than is seen, and how
// many pods are doubtful.
func (e *Explanation) doubts() []int {
	d := make([]int, 4)
	for i := range e.Metrics {
		m := &e.Metrics[i]
		switch m.Rule {
		case RuleRefused:
			d[0]++
		case RuleHeld:
			d[1]++
		case RuleEstimated, RuleMore:
			d[2]++
		}
		for _, p := range m.Pods {
			if p.State.Doubtful() {
				d[3]++
			}
		}
	}
	return d
}

// Doubtful says whether not all is known of the metrics that there is to know.
func (e *Explanation) Doubtful() bool { return slices.Max(e.doubts()) > 0 }

// Less says whether there are fewer doubts than of another explanation of the HPA. equal is the
// answer where there are as many.
func (e *Explanation) Less(than *Explanation, equal bool) bool {
	c := slices.Compare(e.doubts(), than.doubts())
	return c < 0 || c == 0 && equal
}

// syncPeriod is how often the controller asks.
const syncPeriod = 15 * time.Second

// WithHistory adds the decisions that another replica has made, one a look of the controller. Of
// two the better counts: one that was held may have been asked about.
func (e *Explanation) WithHistory(other *Explanation) {
	for i := range min(len(e.Metrics), len(other.Metrics)) {
		if m, o := &e.Metrics[i], &other.Metrics[i]; m.Name == o.Name && m.Selector == o.Selector {
			m.History = together(m.History, o.History)
		}
	}
}

func together(own, others []Point) []Point {
	points := slices.Concat(own, others)
	slices.SortStableFunc(points, func(a, b Point) int { return a.At.Compare(b.At) })
	all := points[:0]
	for _, p := range points {
		last := len(all) - 1
		switch {
		case last < 0 || !p.At.Truncate(syncPeriod).Equal(all[last].At.Truncate(syncPeriod)):
			all = append(all, p)
		case all[last].Rule == RuleHeld || all[last].Rule == RuleRefused || p.Rule != RuleHeld && p.Rule != RuleRefused:
			all[last] = p
		}
	}
	return all
}
