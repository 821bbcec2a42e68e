package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// change is a number of replicas that podinfo was scaled to.
type change struct {
	at time.Time
	to int32
}

// scaling is what the guides' app was scaled to, with when it was seen; it is looked at once a
// second until the run ends.
type scaling struct {
	mu      sync.Mutex
	changes []change
}

// watchScale looks at what the reader's app is scaled to from here on.
func (r *reader) watchScale() {
	r.scale = &scaling{}
	go func() {
		for {
			deployment, err := r.cluster.Client.AppsV1().Deployments(r.namespace).Get(context.Background(), "podinfo", metav1.GetOptions{})
			if err == nil && deployment.Spec.Replicas != nil { // before it is there, nothing is scaled
				r.scale.see(time.Now(), *deployment.Spec.Replicas)
			}
			time.Sleep(time.Second)
		}
	}()
}

func (s *scaling) see(at time.Time, replicas int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.changes) == 0 || s.changes[len(s.changes)-1].to != replicas {
		s.changes = append(s.changes, change{at, replicas})
	}
}

// now is a place in what was seen, for unchangedSince.
func (s *scaling) now() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.changes)
}

// unchangedSince is an error that says what the app was scaled to since then.
func (s *scaling) unchangedSince(then int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.changes) > then {
		return fmt.Errorf("scaled to %s", s.list(then))
	}
	return nil
}

// went is an error where the app was not at these numbers in this order, on whatever way between
// them.
func (s *scaling) went(order ...int32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := 0
	for _, replicas := range order {
		next := slices.IndexFunc(s.changes[from:], func(c change) bool { return c.to == replicas })
		if next < 0 {
			return fmt.Errorf("not to %d in its turn: %s", replicas, s.list(0))
		}
		from += next + 1
	}
	return nil
}

// all tells where it went.
func (s *scaling) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list(0)
}

// list tells the changes from one on; the lock is held.
func (s *scaling) list(from int) string {
	text := ""
	for i, c := range s.changes[from:] {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%d (%.0f s)", c.to, c.at.Sub(s.changes[0].at).Seconds())
	}
	return text
}
