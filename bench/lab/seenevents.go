package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/attack"
	"github.com/meshpulse/meshpulse/bench/lab/proc"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
)

const (
	// seenLook is how often the API server is asked for events.
	seenLook = 10 * time.Second
	// seenTellsWithin is how soon after a trouble its event has to stand: --hold, a sync of the
	// controller, and a window for what another one has sent.
	seenTellsWithin = 3 * time.Minute
	// seenSlack is by how much an event may outlive its time to live: etcd gives those of a minute
	// one lease.
	seenSlack = 2 * time.Minute
)

// standing is an event that should stand as long as the trouble that it tells of.
type standing struct {
	namespace, reason string
	trouble           string

	mu        sync.Mutex
	uid       string // of the first that was seen
	began     metav1.Time
	first     time.Time // when it was first seen
	last      time.Time // and last
	renewed   metav1.Time
	renewals  int
	missing   int // looks at which it was not there, though it had been
	restarted int // looks at which it said that it had begun at another time
}

// look takes into account what the API server has of it at a time.
func (s *standing) look(at time.Time, events []corev1.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(events, func(e corev1.Event) bool { return s.uid == "" || string(e.UID) == s.uid })
	switch {
	case i < 0 && s.uid == "":
		return
	case i < 0:
		s.missing++
		return
	case s.uid == "":
		s.uid, s.began, s.first, s.renewed = string(events[i].UID), events[i].FirstTimestamp, at, events[i].LastTimestamp
		slog.Info("event stands", "namespace", s.namespace, "reason", s.reason, "message", events[i].Message)
	}
	e := events[i]
	if !e.FirstTimestamp.Equal(&s.began) {
		s.restarted++
	}
	if !e.LastTimestamp.Equal(&s.renewed) {
		s.renewals++
		s.renewed = e.LastTimestamp
		slog.Info("event is renewed", "namespace", s.namespace, "reason", s.reason, "stands", at.Sub(s.first).Round(time.Second))
	}
	s.last = at
}

// stood is how long it has stood, without a look at which it was not there.
func (s *standing) stood() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uid == "" || s.missing > 0 {
		return 0
	}
	return s.last.Sub(s.first)
}

// follow looks at events until the context ends.
func (r *seenRun) follow(ctx context.Context, s *standing) {
	proc.Every(ctx, seenLook, func() {
		if events, err := r.eventsOf(ctx, s); err == nil {
			s.look(time.Now(), events)
		}
	})
}

// eventsOf are the events of a reason on a lane's HPA.
func (r *seenRun) eventsOf(ctx context.Context, s *standing) ([]corev1.Event, error) {
	list, err := r.cluster.Client.CoreV1().Events(s.namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "reason=" + s.reason + ",involvedObject.kind=HorizontalPodAutoscaler,involvedObject.name=" + workload,
	})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// lasting: for longer than two of an event's lives one sidecar is silent while its pod lives, and
// somebody else reports as a pod of another lane. Meanwhile one replica is away, and a pod sends
// more series than it may. Then everything ends, and the events have to go.
func (r *seenRun) lasting(ctx context.Context) error {
	events := []*standing{
		{namespace: muteLane, reason: "MuteSidecars", trouble: "a sidecar falls silent"},
		{namespace: contestedLane, reason: "ContestedPod", trouble: "another sender reports as a pod"},
	}
	silent, again, err := r.nodes.silence(muteLane)
	if err != nil {
		return err
	}
	r.notes = append(r.notes, "the silent sidecar's pod lives on, and two others of its workload report")
	slog.Info("trouble", "what", "a sidecar is silent", "pod", silent.Name)
	began := time.Now()
	following, stop := context.WithCancel(ctx)
	var looks, troubles sync.WaitGroup
	defer looks.Wait()
	defer stop()
	for _, e := range events {
		looks.Go(func() { r.follow(following, e) })
	}
	var results [3][]scenario.Measure
	var errs [3]error
	for i, t := range []trouble{r.lonely(), r.crowd(), r.contest(events)} {
		troubles.Go(func() { results[i], errs[i] = r.suffer(ctx, t) })
	}
	err = r.until(ctx, r.stands+2*seenTellsWithin, "events that stand all the time", func() bool { return r.stand(events) })
	if err != nil && !errors.Is(err, errNotSeen) {
		return errors.Join(err, errors.Join(errs[:]...))
	}
	for _, e := range events {
		r.measures = append(r.measures, e.measures(began, r.stands)...)
	}
	again()
	gone, goneErr := r.untilGone(ctx, events)
	troubles.Wait()
	for _, all := range results {
		r.measures = append(r.measures, all...)
	}
	r.measures = append(r.measures, gone...)
	return errors.Join(append(errs[:], goneErr)...)
}

// stand says whether every event has stood long enough.
func (r *seenRun) stand(events []*standing) bool {
	return !slices.ContainsFunc(events, func(e *standing) bool { return e.stood() < r.stands })
}

// measures are what was seen of an event while its trouble lasted.
func (s *standing) measures(began time.Time, stands time.Duration) []scenario.Measure {
	s.mu.Lock()
	defer s.mu.Unlock()
	told, none, least := took(s.reason+" is told after "+s.trouble, seenTellsWithin), 0.0, stands.Minutes()
	stood := 0.0
	if s.uid != "" {
		told.Value, stood = s.first.Sub(began).Seconds(), s.last.Sub(s.first).Minutes()
	}
	return []scenario.Measure{
		told,
		{Name: s.reason + " stands", Value: stood, Unit: "min", Goal: &least, Better: "higher"},
		{Name: s.reason + ": looks at which it was not there", Value: float64(s.missing), Unit: "count", Goal: &none, Better: "lower"},
		{Name: s.reason + ": looks at which it did not say when it began", Value: float64(s.restarted), Unit: "count", Goal: &none, Better: "lower"},
		{Name: s.reason + ": renewals", Value: float64(s.renewals), Unit: "count"},
	}
}

// untilGone waits until no event of the troubles stands any more, and says how long that took from
// now, when they have ended.
func (r *seenRun) untilGone(ctx context.Context, events []*standing) (all []scenario.Measure, err error) {
	ended, gone := time.Now(), map[*standing]time.Time{}
	err = r.until(ctx, seenTTL+2*seenSlack, "the end of the events", func() bool {
		for _, e := range events {
			left, err := r.eventsOf(ctx, e)
			if _, known := gone[e]; err == nil && len(left) == 0 && !known {
				gone[e] = time.Now()
				slog.Info("event is gone", "reason", e.reason, "after", time.Since(ended).Round(time.Second))
			}
		}
		proc.Sleep(ctx, seenLook)
		return len(gone) == len(events)
	})
	for _, e := range events {
		m := took(e.reason+" is gone after the end of that", seenTTL+seenSlack)
		if at, ok := gone[e]; ok {
			m.Value = at.Sub(ended).Seconds()
		}
		all = append(all, m)
	}
	if errors.Is(err, errNotSeen) {
		err = nil // it is a measure
	}
	return all, err
}

// lonely: one replica is killed.
func (r *seenRun) lonely() trouble {
	return trouble{
		what:  "one replica is killed",
		begin: func(context.Context) error { r.pair.kill(1); return nil },
		end:   func(context.Context) error { return r.pair.launch(1) },
		tells: []telling{{"MeshpulsePeersLost", 8 * time.Minute, 2 * time.Minute}},
	}
}

// crowd: a pod sends twice the series that it may, in the place of its own sidecar.
func (r *seenRun) crowd() trouble {
	var stop, again func()
	return trouble{
		what: "a pod sends more series than it may",
		begin: func(ctx context.Context) error {
			pod, resume, err := r.nodes.silence(crowdedLane)
			again = resume
			if err == nil {
				stop = r.report(ctx, pod, &attack.Sidecars{Target: r.pair.sink(), Series: 2 * seenSeries, By: "response_flags", PerSecond: 1})
			}
			return err
		},
		end:   func(context.Context) error { stop(); again(); return nil },
		tells: []telling{{"MeshpulseSamplesDropped", 13 * time.Minute, 7 * time.Minute}},
	}
}

// contest: another sender reports as a pod, until the events have stood long enough.
func (r *seenRun) contest(events []*standing) trouble {
	var stop func()
	return trouble{
		what: "another sender reports as a pod",
		begin: func(ctx context.Context) error {
			pods := r.nodes.running(contestedLane)
			if len(pods) == 0 {
				return errors.New("there is no pod that it could report as")
			}
			stop = r.report(ctx, pods[0], &attack.Sidecars{Target: r.pair.sink(), Series: 1})
			return nil
		},
		end: func(ctx context.Context) error {
			err := r.until(ctx, r.stands+2*seenTellsWithin, "events that stand", func() bool { return r.stand(events) })
			stop()
			if errors.Is(err, errNotSeen) {
				err = nil // it is a measure of the events'
			}
			return err
		},
		tells: []telling{{"MeshpulseHPAHeld", 17 * time.Minute, 5 * time.Minute}},
	}
}

// report lets a sidecar report as a pod until stop is called.
func (r *seenRun) report(ctx context.Context, pod attack.Pod, s *attack.Sidecars) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var sending sync.WaitGroup
	sending.Go(func() { s.Run(ctx, pod) })
	return func() {
		cancel()
		sending.Wait()
	}
}
