package metricsapi

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// sender is a stream that reports as a pod, at a rate of its own.
type sender struct {
	pod, address string
	from, to     time.Duration
	perFlush     float64
	ends         bool
}

// sendAll lets senders flush every 5 s, side by side.
func sendAll(t *testing.T, s *aggregator.Store, until time.Duration, senders []sender) {
	t.Helper()
	streams, counts := make([]*aggregator.Stream, len(senders)), make([]float64, len(senders))
	for at := 5 * time.Second; at <= until; at += 5 * time.Second {
		for i, from := range senders {
			if at < from.from || at > from.to {
				continue
			}
			if streams[i] == nil {
				streams[i] = s.Connect(aggregator.Pod{Namespace: "test", Name: from.pod, Workload: "podinfo", Address: from.address})
			}
			counts[i] += from.perFlush
			arrival := s.Started().Add(at + time.Duration(i)*time.Millisecond)
			b := &aggregator.Batch{Timestamp: arrival.UnixMilli()}
			b.Samples = []aggregator.Sample{
				{Key: 1, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: counts[i]},
				{Key: 2, Timestamp: b.Timestamp, Kind: aggregator.Histogram, Count: uint64(from.perFlush), Value: 1},
			}
			if err := streams[i].Commit(arrival, b, requestLabels{}); err != nil && !errors.Is(err, aggregator.ErrSuperseded) {
				t.Fatal(err)
			}
			if from.ends && at+5*time.Second > from.to {
				streams[i].Close()
			}
		}
	}
}

// Two streams that report as one pod, where nothing tells which is right: the answer keeps the
// replicas, whatever is seen, and says who.
func TestAContestedPodIsHeld(t *testing.T) {
	const end = 4 * time.Minute
	pod := func(name string) cluster.Pod {
		return cluster.Pod{Identity: aggregator.Pod{Namespace: "test", Name: name, Workload: "podinfo"}, Wired: true}
	}
	victim := sender{pod: "a", address: "10.0.0.1:100", from: 5 * time.Second, to: end, perFlush: 25}
	forger := func(from, to time.Duration, perFlush float64, ends bool) sender {
		return sender{pod: "a", address: "10.0.0.9:200", from: from, to: to, perFlush: perFlush, ends: ends}
	}
	for name, tc := range map[string]struct {
		senders        []sender
		known          bool // to the cluster, under its name
		alone          bool // standalone
		want, reason   string
		event, refused bool
	}{
		"one sender": {senders: []sender{victim}, known: true, want: "5"},
		"zeroed": {
			senders: []sender{victim, forger(2*time.Minute, end, 0, false)}, known: true,
			want: "40", reason: "1 sidecar that two senders report as (a, sent from 10.0.0.9:200 and from 10.0.0.1:100)", event: true,
		},
		"multiplied": {
			senders: []sender{victim, forger(2*time.Minute, end, 2500, false)}, known: true,
			want: "40", reason: "10.0.0.9:200", event: true,
		},
		"by one message": {
			senders: []sender{victim, forger(end-30*time.Second, end-30*time.Second, 0, true)}, known: true,
			want: "40", reason: "sent from 10.0.0.1:100 and from 10.0.0.9:200", event: true,
		},
		"by one message just now": {
			senders: []sender{victim, forger(end, end, 0, false)}, known: true,
			want: "40", reason: "10.0.0.9:200", // it may be the victim's new connection
		},
		"by one message that has left the window": {
			senders: []sender{victim, forger(2*time.Minute, 2*time.Minute, 0, true)}, known: true, want: "5",
		},
		"a pod that the cluster does not know disputes with itself": {
			senders: []sender{victim, {pod: "b", address: "10.0.0.9:1", from: 2 * time.Minute, to: end}, {pod: "b", address: "10.0.0.9:2", from: 2 * time.Minute, to: end}},
			known:   true, want: "5",
		},
		"standalone": {
			senders: []sender{victim, forger(2*time.Minute, end, 0, false)}, alone: true,
			refused: true, reason: "two senders report as (a, sent from 10.0.0.9:200 and from 10.0.0.1:100)", event: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			store, err := aggregator.New(aggregator.Config{})
			if err != nil {
				t.Fatal(err)
			}
			sendAll(t, store, end, tc.senders)
			p := register(store, preparedKey{namespace: "test", expr: `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`})
			askers := []*hpas.Wants{asking("podinfo", "AverageValue", "10", 2)}
			o := &offer{offerKey: offerKey{namespace: "test", metric: "rps"}, prepared: p, owner: askers[0], askers: askers}
			r := rules{retention: 5 * time.Minute, started: store.Started()}
			if !tc.alone {
				known := fixedPods{}
				if tc.known {
					known = append(known, pod("a"))
				}
				r.holder = &holder{pods: known, scales: fixedScale(4), store: store, started: store.Started(), hold: 5 * time.Minute}
			}
			v, _, refused := r.evaluate(context.Background(), "metric rps", o, p, store.Started().Add(end+time.Second))
			if tc.refused {
				if refused == nil || refused.outcome != outcomeHeld || !strings.Contains(refused.message, tc.reason) {
					t.Errorf("got %+v, refused %v, want a refusal with %q", v, refused, tc.reason)
				}
			} else if refused != nil {
				t.Fatalf("refused: %v", refused)
			} else if got := number(float64(v.sum()) / 1000); got != tc.want || !strings.Contains(v.reason, tc.reason) || (tc.reason == "") != (v.reason == "") {
				t.Errorf("got %s (%s), want %s (%s)", got, v.reason, tc.want, tc.reason)
			}
			told := false
			for _, problem := range v.problems {
				told = told || problem.Reason == hpas.ReasonContestedPod && strings.Contains(problem.Message, "test/a, from 10.0.0.") && !strings.Contains(problem.Message, "00:")
			}
			if told != tc.event {
				t.Errorf("told %v, want %v: %+v", told, tc.event, v.problems)
			}
		})
	}
}

// A pod that the cluster does not know adds nothing to an answer, and the HPA that it says it is of
// is told which it is.
func TestAForeignPodIsToldAndNotCounted(t *testing.T) {
	for name, count := range map[string]bool{"refused": false, "counted": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, err := aggregator.New(aggregator.Config{CountForeign: count})
				if err != nil {
					t.Fatal(err)
				}
				known := fixedPods{{Identity: aggregator.Pod{Namespace: "test", Name: "a", Workload: "podinfo"}, Wired: true}}
				store.SetPods(created(known))
				go store.Run(t.Context())
				ticks, streams := 0, []*aggregator.Stream{}
				for _, pod := range []string{"a", "phantom"} {
					streams = append(streams, store.Connect(aggregator.Pod{Namespace: "test", Name: pod, Workload: "podinfo", Sender: pod}))
				}
				for range 18 {
					time.Sleep(5 * time.Second)
					ticks++
					for _, st := range streams {
						b := &aggregator.Batch{Timestamp: time.Now().UnixMilli()}
						b.Samples = []aggregator.Sample{{Key: 1, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: float64(25 * ticks)}}
						_ = st.Commit(time.Now(), b, requestLabels{}) // a phantom's is refused
					}
				}
				p := register(store, preparedKey{namespace: "test", expr: `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[30s]))`})
				askers := []*hpas.Wants{asking("podinfo", "AverageValue", "10", 2)}
				o := &offer{offerKey: offerKey{namespace: "test", metric: "rps"}, prepared: p, owner: askers[0], askers: askers}
				r := rules{retention: 5 * time.Minute, started: store.Started(), holder: &holder{pods: known, scales: fixedScale(4), store: store, started: store.Started(), hold: 5 * time.Minute}}
				v, _, refused := r.evaluate(t.Context(), "metric rps", o, p, time.Now())
				if want := map[bool]string{false: "5", true: "10"}[count]; refused != nil || v.held || number(float64(v.sum())/1000) != want {
					t.Errorf("got %+v, refused %v, want %s", v, refused, want)
				}
				told := ""
				for _, problem := range v.problems {
					if problem.Reason == hpas.ReasonForeignPods {
						told += problem.Message
					}
				}
				if strings.Contains(told, "test/phantom") == count {
					t.Errorf("told %q", told)
				}
			})
		})
	}
}
