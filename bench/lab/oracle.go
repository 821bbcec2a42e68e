package main

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/lab/scenario"
	"github.com/meshpulse/meshpulse/bench/web"
)

// What one meshpulse by itself makes of what two are sent: its answers while the load runs, and in
// the end what it would have raised, beside what the two would have. All three observe, so what
// they see of HPAs and targets is the same.

// askOracleNow notes what the oracle answers for a lane.
func (r *loop) askOracleNow(ctx context.Context, ln *lane) {
	p, ok := r.source.(*pair)
	if !ok || p.oracle == nil {
		return
	}
	metric := ln.hpa.Spec.Metrics[0].External
	if ln.trace.Oracle == nil {
		ln.trace.Oracle = &scenario.Oracle{Target: metric.Target.AverageValue.AsApproximateFloat64()}
	}
	query := url.Values{"labelSelector": {metav1.FormatLabelSelector(metric.Metric.Selector)}}
	at := time.Since(ln.start)
	body, err := web.Get(ctx, r.cluster.AdminClient(), "https://"+p.oracle.host()+pathOf(ln.Namespace, metric.Metric.Name)+"?"+query.Encode())
	if err != nil {
		return // no answer asks for nothing
	}
	if value, _, err := sumOf(body); err == nil {
		ln.trace.Oracle.Answers = append(ln.trace.Oracle.Answers, scenario.Answered{At: at, Value: value})
	}
}

// askOracle reads what would have been raised for a lane from the logs.
func (r *loop) askOracle(ln *lane) (err error) {
	p, ok := r.source.(*pair)
	if !ok || p.oracle == nil || ln.trace.Oracle == nil {
		return nil
	}
	if ln.trace.Oracle.Raises, err = observedIn(ln, p.oracle); err != nil {
		return err
	}
	ln.trace.Oracle.Own, err = observedIn(ln, p.replicas[:]...)
	return err
}

// wouldRaise is a line of meshpulse's log that tells of a raise that was not made: when, in which
// namespace, and to how many.
var wouldRaise = regexp.MustCompile(`(?m)^time=(\S+) .*msg="surge observed" namespace=(\S+) .* to=(\d+) `)

func observedIn(ln *lane, all ...*meshpulse) ([]scenario.Asked, error) {
	var found []scenario.Asked
	for _, m := range all {
		log, err := os.ReadFile(filepath.Join(m.dir, "meshpulse.log"))
		if err != nil {
			return nil, err
		}
		for _, line := range wouldRaise.FindAllStringSubmatch(string(log), -1) {
			at, err := time.Parse(time.RFC3339Nano, line[1])
			if err != nil || line[2] != ln.Namespace {
				continue
			}
			to, err := strconv.Atoi(line[3])
			if err != nil {
				return nil, err
			}
			found = append(found, scenario.Asked{At: at.Sub(ln.start), Replicas: to})
		}
	}
	slices.SortFunc(found, func(a, b scenario.Asked) int { return int(a.At - b.At) })
	return found, nil
}
