package aggregator

import (
	"context"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
)

// TestDifferencesFromPrometheus runs the scripts of differences.md, the one list of answers that
// are meant to differ from Prometheus'. In them "prometheus at" asks a Prometheus that has scraped
// the sidecars at each of their flushes. Each entry has a reason, and an expression that both
// answer, differently: what no longer differs has to leave the list.
func TestDifferencesFromPrometheus(t *testing.T) {
	text, err := os.ReadFile("differences.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	entries := 0
	for i := 0; i < len(lines); i++ {
		title, ok := strings.CutPrefix(lines[i], "## ")
		if !ok {
			continue
		}
		open := i + slices.Index(lines[i:], "```")
		end := open + 1 + slices.Index(lines[open+1:], "```")
		reason := strings.TrimSpace(strings.Join(lines[i+1:open], " "))
		if open <= i || end <= open || strings.Contains(reason, "## ") || len(reason) < 40 {
			t.Fatalf("%s: want a reason, then a script", title)
		}
		entries++
		t.Run(title, func(t *testing.T) {
			if !bothAnswer(lines[open+1 : end]) {
				t.Error("no expression is answered by both, differently")
			}
			synctest.Test(t, func(t *testing.T) {
				s := &script{t: t, streams: map[string]*Stream{}, scraped: &scraped{series: map[string]*scrapedSeries{}}}
				s.run("differences.md", lines[open+1:end], open+2)
			})
		})
		i = end
	}
	if entries == 0 {
		t.Error("differences.md lists nothing")
	}
}

// bothAnswer reports whether a script expects of "eval" and of "prometheus" another answer to the
// same question.
func bothAnswer(lines []string) bool {
	answers := map[string]string{}
	for i, l := range lines {
		who, question, ok := strings.Cut(l, " at ")
		if !ok || who != "eval" && who != "prometheus" {
			continue
		}
		body := ""
		for _, b := range lines[i+1:] {
			if !strings.HasPrefix(b, "  ") {
				break
			}
			body += b
		}
		if other, asked := answers[question]; asked && other != who+body && !strings.HasPrefix(other, who) && other[strings.Index(other, " "):] != body {
			return true
		}
		answers[question] = who + body
	}
	return false
}

// scraped is what Prometheus has when it scrapes each sidecar at its flushes.
type scraped struct{ series map[string]*scrapedSeries }

type scrapedSeries struct {
	labels labels.Labels
	pod    *Pod
	stream *Stream // the process: cumulative histograms begin anew in another
	points []point
}

// scrape takes what the sidecar's own metrics page shows: counters as they are, histograms added up
// since it started. A series that was there and is not any more turns stale.
func (p *scraped) scrape(st *Stream, at int64, b *Batch, d described) {
	seen := map[*scrapedSeries]bool{}
	set := func(ls labels.Labels, suffix, le string, v float64, interval bool) {
		lb := labels.NewBuilder(ls).Set(model.MetricNameLabel, ls.Get(model.MetricNameLabel)+suffix)
		for name, of := range map[string]string{labelNamespace: st.pod.Namespace, labelPod: st.pod.Name} {
			if own := ls.Get(name); own != "" {
				lb.Set("exported_"+name, own) // honor_labels: false
			}
			lb.Set(name, of)
		}
		if le != "" {
			lb.Set(labels.BucketLabel, le)
		}
		key := lb.Labels().String()
		s := p.series[key]
		if s == nil {
			s = &scrapedSeries{labels: lb.Labels(), pod: st.pod}
			p.series[key] = s
		}
		if last := len(s.points) - 1; interval && s.stream == st && last >= 0 && !value.IsStaleNaN(s.points[last].v) {
			v += s.points[last].v
		}
		s.stream, seen[s] = st, true
		s.points = append(s.points, point{at, v})
	}
	for i, sample := range b.Samples {
		switch sample.Kind {
		case Counter, Gauge:
			set(d[i], "", "", sample.Value, false)
		case Histogram:
			for _, bucket := range b.Buckets[sample.First:sample.Last] {
				set(d[i], "_bucket", formatBound(bucket.UpperBound), float64(bucket.Count), true)
			}
			set(d[i], "_bucket", formatBound(math.Inf(1)), float64(sample.Count), true)
			set(d[i], "_count", "", float64(sample.Count), true)
			set(d[i], "_sum", "", sample.Value, true)
		}
	}
	for _, s := range p.series {
		if s.pod.Name == st.pod.Name && !seen[s] {
			s.points = append(s.points, point{at, math.Float64frombits(value.StaleNaN)})
		}
	}
}

// answer asks Prometheus' engine over what was scraped.
func (p *scraped) answer(t *testing.T, expr string, at time.Time) []Value {
	over := prometheusWith(t, func(app storage.Appender) error {
		for _, s := range p.series {
			for _, q := range s.points {
				if _, err := app.Append(0, s.labels, q.t, q.v); err != nil {
					return err
				}
			}
		}
		return nil
	})
	samples, err := result(newEngine().promql.NewInstantQuery(context.Background(), over, nil, expr, at))
	if err != nil {
		t.Fatal(err)
	}
	var values []Value
	for _, s := range samples {
		values = append(values, Value{s.Metric, s.F})
	}
	return values
}
