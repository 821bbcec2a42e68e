package fleet

import (
	"fmt"
	"strconv"
	"strings"

	dto "github.com/prometheus/client_model/go"
)

// Exposition is what the sidecars of a workload show at /stats/prometheus: the families that they
// flush, as Istio's Prometheus scrapes them. It never changes, so many may be served from it.
type Exposition struct {
	lines   []line
	traffic *traffic
}

// line is a sample but for its value, or a comment.
type line struct {
	text string
	set  int
	kind lineKind
	le   float64
}

type lineKind int

const (
	comment lineKind = iota
	counted          // requests so far
	bucketed
	summed
)

// NewExposition returns what the sidecars of a workload show.
func NewExposition(labelSets, busiest, workload int) (*Exposition, error) {
	_, steady, err := readRecording(true)
	if err != nil {
		return nil, err
	}
	e := &Exposition{traffic: newTraffic(labelSets, busiest)}
	for _, f := range steady.GetEnvoyMetrics() {
		if !isIstio(f) || !isOfFirstCaller(f) || f.GetType() == dto.MetricType_SUMMARY {
			continue
		}
		name := strings.TrimPrefix(f.GetName(), "istiocustom.")
		e.lines = append(e.lines, line{text: fmt.Sprintf("# TYPE %s %s\n", name, strings.ToLower(f.GetType().String()))})
		for set := range labelSets {
			e.add(name, set, ofLabelSet(f, set, e.traffic.counts[set][0]), digits(workload, 4))
		}
	}
	if len(e.lines) == 0 {
		return nil, fmt.Errorf("exposition: no family of Istio's in the recording")
	}
	return e, nil
}

func (e *Exposition) add(name string, set int, f *dto.MetricFamily, workload string) {
	var b strings.Builder
	for _, l := range f.GetMetric()[0].GetLabel() {
		fmt.Fprintf(&b, "%s=%q,", l.GetName(), strings.ReplaceAll(l.GetValue(), workloadBits, workload))
	}
	labels := strings.TrimSuffix(b.String(), ",")
	if f.GetType() == dto.MetricType_COUNTER {
		e.lines = append(e.lines, line{text: fmt.Sprintf("%s{%s} ", name, labels), set: set, kind: counted})
		return
	}
	for _, bucket := range f.GetMetric()[0].GetHistogram().GetBucket() {
		le := bucket.GetUpperBound()
		text := fmt.Sprintf("%s_bucket{%s,le=%q} ", name, labels, strconv.FormatFloat(le, 'g', -1, 64))
		e.lines = append(e.lines, line{text: text, set: set, kind: bucketed, le: le})
	}
	e.lines = append(e.lines,
		line{text: fmt.Sprintf("%s_bucket{%s,le=\"+Inf\"} ", name, labels), set: set, kind: counted},
		line{text: fmt.Sprintf("%s_sum{%s} ", name, labels), set: set, kind: summed},
		line{text: fmt.Sprintf("%s_count{%s} ", name, labels), set: set, kind: counted})
}

// Series is how many samples a scrape has.
func (e *Exposition) Series() int {
	n := 0
	for _, l := range e.lines {
		if l.kind != comment {
			n++
		}
	}
	return n
}

// Append appends the text of a pod after so many flushes' worth of requests.
func (e *Exposition) Append(b []byte, pod int, flushes int64) []byte {
	cycle, ahead := e.traffic.flushes(), e.traffic.ahead(pod)
	for i := range e.lines {
		l := &e.lines[i]
		b = append(b, l.text...)
		if l.kind == comment {
			continue
		}
		n := uint64(0)
		for v := range cycle {
			times := uint64(flushes / cycle)
			if v < flushes%cycle {
				times++
			}
			interval := e.traffic.counts[l.set][(v+ahead)%cycle]
			if l.kind == bucketed {
				interval = cumulative(interval, l.le)
			}
			n += times * interval
		}
		if l.kind == summed {
			n *= meanValue
		}
		b = append(strconv.AppendUint(b, n, 10), '\n')
	}
	return b
}
