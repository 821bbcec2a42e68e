package cluster

import (
	"context"
	"maps"
	"sync"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/client-go/scale"
)

const (
	// scaleLife is how long what was read of a scale is given to others who ask.
	scaleLife = time.Second
	// scaleTimeout bounds a read of a scale: no answer waits longer for one.
	scaleTimeout = 4 * time.Second
)

// scaleReads reads scales for answers: each target's once in its life, whoever asks and however
// many. It is safe for concurrent use.
type scaleReads struct {
	kinds  *kinds
	client scale.ScalesGetter
	life   time.Duration

	mu    sync.Mutex
	known map[scaleKey]*question[*autoscalingv1.Scale]
	swept time.Time
}

type scaleKey struct {
	namespace string
	target    autoscalingv2.CrossVersionObjectReference
}

func newScaleReads(kinds *kinds, client scale.ScalesGetter, life time.Duration) *scaleReads {
	return &scaleReads{kinds: kinds, client: client, life: life, known: map[scaleKey]*question[*autoscalingv1.Scale]{}}
}

func (s *scaleReads) recent(ctx context.Context, namespace string, target autoscalingv2.CrossVersionObjectReference) (*autoscalingv1.Scale, error) {
	return s.read(ctx, scaleKey{namespace, target}).wait(ctx)
}

// read returns the read of a scale that is young enough, a new one where there is none. It outlives
// the answer that began it.
func (s *scaleReads) read(ctx context.Context, key scaleKey) *question[*autoscalingv1.Scale] {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if q := s.known[key]; q != nil && now.Sub(q.began) < s.life {
		return q
	}
	if now.Sub(s.swept) >= s.life {
		s.swept = now
		maps.DeleteFunc(s.known, func(_ scaleKey, q *question[*autoscalingv1.Scale]) bool { return now.Sub(q.began) >= s.life })
	}
	ctx = context.WithoutCancel(ctx)
	q := ask(now, func() (*autoscalingv1.Scale, error) {
		ctx, cancel := context.WithTimeout(ctx, scaleTimeout)
		defer cancel()
		return readScale(ctx, s.kinds, s.client, key.namespace, key.target)
	})
	s.known[key] = q
	return q
}

// wrote takes what a raise has made of a scale for read: an older read would look as if somebody
// had lowered it.
func (s *scaleReads) wrote(namespace string, target autoscalingv2.CrossVersionObjectReference, now *autoscalingv1.Scale) {
	q := ask(time.Now(), func() (*autoscalingv1.Scale, error) { return now, nil })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[scaleKey{namespace, target}] = q
}

// question is one that several wait for, to the API server.
type question[T any] struct {
	began time.Time
	done  chan struct{} // closed once value and err are there
	value T
	err   error
}

func ask[T any](began time.Time, answer func() (T, error)) *question[T] {
	q := &question[T]{began: began, done: make(chan struct{})}
	go func() {
		defer close(q.done)
		q.value, q.err = answer()
	}()
	return q
}

func (q *question[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-q.done:
		return q.value, q.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}
