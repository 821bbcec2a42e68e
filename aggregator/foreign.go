package aggregator

import (
	"sync"
	"time"
)

// Pods that the cluster does not know. A name costs nothing: who may invent pods can raise any
// answer. So in a cluster a pod has to be one that exists. The informer may lag, so of a pod that
// it does not know the API server itself is asked once, at its first flush: one that it denies is
// refused until it is known. Where the API server does not tell, the pod has half a minute, and its
// sender has it once; then what it has sent is given up. What a pod has sent that was known stays
// until it has left the window; half a minute after its end nobody reports as it any more. Nothing
// is done by what is not in step.

const (
	// foreignAfter is how long after its first row a pod may be unknown, and may send after its
	// end, in milliseconds.
	foreignAfter = 30_000
	// inStepFor is how long what is known has to have been in step before a pod is unknown by it.
	inStepFor = 10_000
	// knownFor is how long a pod that exists is believed to.
	knownFor = 10_000
	// caughtFor is how long a sender that had pods nobody knows is remembered, of maxCaught such.
	caughtFor = int64(time.Hour / time.Millisecond)
	maxCaught = 10_000
	// maxAsking is of how many pods the cluster is asked at a time, and askingFor how long one
	// waits for that.
	maxAsking = 8
	askingFor = time.Second
	// maxForeign is how many pods that are refused are remembered by name, so that it can be said
	// of a query which say that they are its.
	maxForeign = 64
)

// foreign are the pods that the cluster does not know, and who sent as them.
type foreign struct {
	// By who watches alone: since when the cluster's pods are in step, 0 if they are not, and when
	// those that existed were last asked for.
	inStep, asked int64
	asking        chan struct{} // of maxAsking

	mu      sync.Mutex
	senders bounded[string, int64] // when they were last caught
	named   namedPods
}

// watchForeign gives up what pods have sent that the cluster does not know.
func (s *store) watchForeign(now int64) {
	pods, f := s.pods.Load(), &s.foreign
	switch {
	case pods == nil || s.config.CountForeign:
		return
	case !(*pods).InStep():
		f.inStep = 0
		return
	case f.inStep == 0:
		f.inStep = now
	}
	if now-f.inStep < inStepFor {
		return
	}
	all := now-f.asked >= knownFor
	if all {
		f.asked = now
	}
	for _, t := range s.tables.all.all() {
		if known := t.exists(*pods, now); !t.gone.Load() && (all || !known) {
			s.judge(t, *pods, known, now)
		}
	}
}

// judge says whether a table's pod is foreign: it was never known, or what was has left.
func (s *store) judge(t *table, pods Pods, known bool, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.removed || t.born == 0 {
		return
	}
	p := t.pod.Load()
	exists, left := pods.Exists(p.Namespace, p.Name)
	if t.foreign = known && !exists && now-left.UnixMilli() > foreignAfter; known || exists || now-t.born < foreignAfter {
		return
	}
	if newest, ok := t.newest(); ok && newest < s.foreign.inStep { // it may have come and gone before it could be known
		return
	}
	s.metrics.foreign.Inc()
	s.foreign.caught(p, now)
	t.discard()
}

// caught remembers the pod, and who sent as it.
func (f *foreign) caught(p *Pod, now int64) {
	f.mu.Lock()
	if p.Sender != "" {
		f.senders.keep(p.Sender, now, maxCaught)
	}
	f.mu.Unlock()
	f.named.note(p, "", now)
}

// refuses reports whether a pod that has no table gets none: it does not exist, and its sender has
// had his time, or it has left long ago.
func (s *store) refuses(p *Pod, now int64) bool {
	pods := s.pods.Load()
	if pods == nil || s.config.CountForeign || !(*pods).InStep() {
		return false
	}
	exists, left := (*pods).Exists(p.Namespace, p.Name)
	if exists || !left.IsZero() && now-left.UnixMilli() <= foreignAfter {
		return false
	}
	f := &s.foreign
	f.mu.Lock()
	at, caught := f.senders.get(p.Sender)
	f.mu.Unlock()
	if left.IsZero() && (!caught || now-at > caughtFor) {
		return false
	}
	f.caught(p, now)
	return true
}

// denied asks the cluster whether it has the pod, which has no table and which the informer does
// not know, and reports whether it says that it has not. The names of one sender cost one question:
// after that he is known for what he is.
func (s *store) denied(p *Pod) bool {
	pods, f := s.pods.Load(), &s.foreign
	if pods == nil || s.config.CountForeign || !(*pods).InStep() {
		return false
	}
	if exists, left := (*pods).Exists(p.Namespace, p.Name); exists || !left.IsZero() {
		return false
	}
	timer := time.NewTimer(askingFor)
	defer timer.Stop()
	select {
	case f.asking <- struct{}{}:
		defer func() { <-f.asking }()
	case <-timer.C:
		return false
	}
	if s.refuses(p, s.millis(time.Now())) { // since it has waited
		return true
	}
	if !(*pods).Denies(p.Namespace, p.Name) {
		return false
	}
	s.metrics.foreign.Inc()
	f.caught(p, s.millis(time.Now()))
	return true
}

// clusterPods returns what is known of the cluster's pods, nil where nobody knows them, or not now.
func (s *store) clusterPods() Pods {
	if pods := s.pods.Load(); pods != nil && (*pods).Fresh() {
		return *pods
	}
	return nil
}

// exists reports whether the cluster knows the pod. What it did not know is asked again after a
// second.
func (t *table) exists(pods Pods, at int64) bool {
	asked := t.asked.Load()
	if asked != 0 && (asked == knownPod || at-asked < 1000) {
		return asked == knownPod
	}
	p := t.pod.Load()
	if _, _, ok := pods.Known(p.Namespace, p.Name); ok {
		at = knownPod
	}
	t.asked.Store(at)
	return at == knownPod
}

// knownPod is no time.
const knownPod = -1
