package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metrics "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	prom "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meshpulse/meshpulse/bench/durations"
	"github.com/meshpulse/meshpulse/bench/sidecar"
)

// synthesize sends what a sidecar of 50,000 requests a second would: messages made up from the same
// bins, a flush a second.
func (run *exactRun) synthesize(ctx context.Context, cells []*cell) (err error) {
	const flushes, perFlush = 12, 50_000
	conn, err := grpc.NewClient(run.server.Ingest, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the stream has no other end: meshpulse answers nothing
	stream, err := metrics.NewMetricsServiceClient(conn).StreamMetrics(ctx)
	if err != nil {
		return err
	}
	draws := make([]*rand.Rand, len(cells))
	for i := range draws {
		draws[i] = rand.New(rand.NewPCG(uint64(i), 62))
	}
	for k := range flushes {
		m := &metrics.StreamMetricsMessage{}
		if k == 0 {
			m.Identifier = &metrics.StreamMetricsMessage_Identifier{Node: syntheticNode()}
		}
		now := time.Now().UnixMilli()
		for i, l := range latencies() {
			var flush durations.Recorded
			for range perFlush {
				flush.Record(l.draw(draws[i]))
			}
			cells[i].sent.Add(&flush)
			m.EnvoyMetrics = append(m.EnvoyMetrics, families(&flush, cells[i].source, now)...)
		}
		if err := stream.Send(m); err != nil {
			return err
		}
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
	}
	return nil
}

func syntheticNode() *core.Node {
	meta, _ := structpb.NewStruct(map[string]any{ // fails on values of other types only
		"NAME": "synthetic-0", "NAMESPACE": "test", "WORKLOAD_NAME": "exact",
		"ANNOTATIONS": map[string]any{"sidecar.istio.io/statsFlushInterval": "1s"},
	})
	return &core.Node{
		Id: "sidecar~127.97.60.200~synthetic-0.test~test.svc.cluster.local", Metadata: meta,
		UserAgentVersionType: &core.Node_UserAgentBuildVersion{UserAgentBuildVersion: &core.BuildVersion{
			Version: &envoytype.SemanticVersion{MajorNumber: 1, MinorNumber: 40},
		}},
	}
}

// families are the summary and the histogram of a flush, as Envoy 1.38 and later sends them with
// emit_tags_as_labels.
func families(r *durations.Recorded, source string, at int64) []*prom.MetricFamily {
	name := "istiocustom." + histogramName
	summary := &prom.Summary{SampleCount: new(uint64(r.Count)), SampleSum: new(r.Sum)}
	for _, q := range [...]float64{0, .25, .5, .75, .9, .95, .99, .995, .999, 1} {
		summary.Quantile = append(summary.Quantile, &prom.Quantile{Quantile: new(q), Value: new(r.Quantile(q, false))})
	}
	histogram := &prom.Histogram{SampleCount: new(uint64(r.Count)), SampleSum: new(r.Sum)}
	for _, bound := range sidecar.IstioBounds() {
		histogram.Bucket = append(histogram.Bucket, &prom.Bucket{UpperBound: new(bound), CumulativeCount: new(uint64(r.Below(bound, true)))})
	}
	label := func(name, value string) *prom.LabelPair { return &prom.LabelPair{Name: new(name), Value: new(value)} }
	labels := []*prom.LabelPair{label("reporter", "destination"), label("source_workload", source), label("destination_workload", "exact")}
	return []*prom.MetricFamily{
		{Name: new(name), Type: prom.MetricType_SUMMARY.Enum(), Metric: []*prom.Metric{{Label: labels, Summary: summary, TimestampMs: new(at)}}},
		{Name: new(name), Type: prom.MetricType_HISTOGRAM.Enum(), Metric: []*prom.Metric{{Label: labels, Histogram: histogram, TimestampMs: new(at)}}},
	}
}
