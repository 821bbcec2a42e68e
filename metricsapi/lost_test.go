package metricsapi

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// arrivedFlush is a flush of one of many pods, as a replica gets it.
type arrivedFlush struct {
	pod, connection int
	sent, at        time.Duration // by the pod's clock, and when it is there; since the store's start
	count           float64
}

// killedBeside is what a replica gets of pods with 2 requests a second each where the other one,
// which every second pod was connected to, is killed: what was in flight there is lost, and of each
// pod the flush that finds its connection dead.
func killedBeside(pods int, kill, inFlight, flush time.Duration) []arrivedFlush {
	var all []arrivedFlush
	for pod := range pods {
		connection := 0
		for n := range 30 {
			sent := time.Second + time.Duration(n)*flush + flush*time.Duration(pod)/time.Duration(pods)
			f := arrivedFlush{pod, connection, sent, sent + 5*time.Millisecond, 2 * flush.Seconds() * float64(n+1)}
			switch lost := kill - inFlight; {
			case pod%2 == 1 || sent <= lost:
			case sent <= kill:
				continue
			case connection == 0:
				connection = 1
				continue
			default:
				f.at += 50 * time.Millisecond // to connect takes a while
			}
			all = append(all, f)
		}
	}
	slices.SortStableFunc(all, func(a, b arrivedFlush) int { return cmp.Compare(a.at, b.at) })
	return all
}

// Where nobody knows the pods, one that has lost two flushes in a row has just been heard of: its
// requests have not ended.
func TestFlushesThatAreLostWithAReplicaMoveNoAnswer(t *testing.T) {
	const pods, flush, kill = 100, 5 * time.Second, 90 * time.Second
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c := newCatalog(store, newWarner(nil, newMetrics(nil)))
	defer c.Close()
	p := c.adhoc.acquire("test", `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`)
	defer p.release()
	r := rules{retention: 5 * time.Minute, started: store.Started()}
	flushes := killedBeside(pods, kill, time.Second, flush)
	streams := map[[2]int]*aggregator.Stream{}
	for at := kill - 10*time.Second; at < kill+30*time.Second; at += 250 * time.Millisecond {
		for ; len(flushes) > 0 && flushes[0].at <= at; flushes = flushes[1:] {
			f := flushes[0]
			key := [2]int{f.pod, f.connection}
			if streams[key] == nil {
				streams[key] = store.Connect(aggregator.Pod{Namespace: "test", Name: fmt.Sprint("podinfo-", f.pod), Workload: "podinfo", FlushInterval: flush})
			}
			b := &aggregator.Batch{Timestamp: store.Started().Add(f.sent).UnixMilli()}
			b.Samples = []aggregator.Sample{
				{Key: 1, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: f.count},
				{Key: 2, Timestamp: b.Timestamp, Kind: aggregator.Histogram, Count: 10, Value: 100},
			}
			if err := streams[key].Commit(store.Started().Add(f.at), b, requestLabels{}); err != nil {
				t.Fatal(err)
			}
		}
		v, a, refused := r.evaluate(t.Context(), "the query", nil, p, store.Started().Add(at))
		if refused != nil {
			t.Fatal(refused)
		}
		if off := float64(v.sum())/1000/(2*pods) - 1; math.Abs(off) > 0.003 {
			t.Errorf("%s after the kill: %+.2f %%, %d silent, %s", at-kill, 100*off, a.Silent, v.rule)
		}
	}
}
