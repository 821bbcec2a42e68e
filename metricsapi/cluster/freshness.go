package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// A cache of what the API server has goes on answering when nothing comes in any more: its rights
// were taken away, the API server is gone or cut off. Then every rollout leaves pods in it that do
// not exist, and leaves out those that do.

// Freshness is how long ago something that comes from the API server was last in step with it. An
// open watch is, however long nothing happens: where the connection is dead without a word,
// client-go finds out by HTTP/2's ping (30 s without a frame, then 15 s for its answer) and the
// watch ends. It is safe for concurrent use.
type Freshness struct {
	What  string // in the plural: pods
	asked bool   // see newAskedFreshness
	now   func() time.Time

	mu     sync.Mutex
	last   time.Time // of the newest success; at first of the beginning; of what is asked, else of the first failure
	failed error     // since then
	tried  time.Time // when that was
	open   *openWatch
}

const (
	// askedFor is how long what is read when it is needed is believed once that fails. HPAs are
	// looked at as rarely as each half minute.
	askedFor = time.Minute
	// watchedFor is how long a cache is believed whose watch is not open: whoever may watch has it
	// open again within seconds. A pod that takes over from one that has left meanwhile is not
	// known, and so not waited for; its share of the load leaves the windows of the queries bit by
	// bit, a third of it in this time from one of a minute.
	watchedFor = 20 * time.Second
	// watchProves is how long a watch has to have been open to be one: who may not watch is told at
	// once.
	watchProves = time.Second
)

// NewFreshness is of something that is watched, named in the plural, and in step for now.
func NewFreshness(what string, now func() time.Time) *Freshness {
	return &Freshness{What: what, now: now, last: now()}
}

// NewAskedFreshness is of something that is read when it is needed: in step until that fails, and
// again once nobody has tried for askedFor.
func NewAskedFreshness(what string, now func() time.Time) *Freshness {
	f := NewFreshness(what, now)
	f.asked = true
	return f
}

// Done notes how something that was asked of the API server has ended.
func (f *Freshness) Done(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if err == nil || f.asked && !f.failing(now) {
		f.last = now
	}
	f.failed, f.tried = err, now
}

// failing says whether what is read when it is needed has failed lately. The mutex is held.
func (f *Freshness) failing(now time.Time) bool {
	return f.failed != nil && now.Sub(f.tried) <= askedFor
}

// Age is how long ago it was last in step.
func (f *Freshness) Age() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if f.open.proved(now) || f.asked && !f.failing(now) {
		return 0
	}
	return max(now.Sub(f.last), 0)
}

// watching reports whether a watch is open, which nothing that was read a moment ago is.
func (f *Freshness) watching() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open.proved(f.now())
}

// DeafError is why something is not believed any more.
type DeafError struct {
	What string
	Age  time.Duration
	Why  error // nil: nothing has come at all
}

func (e *DeafError) Error() string {
	if e.Why == nil {
		return fmt.Sprintf("the %s are not known: the API server has told nothing of them for %s", e.What, e.Age.Round(time.Second))
	}
	return fmt.Sprintf("the %s are not known: the API server has told nothing of them for %s: %v", e.What, e.Age.Round(time.Second), e.Why)
}

// Stale says why it is not believed any more, nil while it is. Of nothing at all there is nothing
// to believe.
func (f *Freshness) Stale() error {
	if f == nil {
		return nil
	}
	age, limit := f.Age(), watchedFor
	if f.asked {
		limit = askedFor
	}
	if age <= limit {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return &DeafError{f.What, age, f.failed}
}

// Follow returns the source of an informer with its successes noted.
func (f *Freshness) Follow(from *cache.ListWatch) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := persist(ctx, f, true, func() (runtime.Object, error) { return from.ListWithContextFunc(ctx, options) })
			if err == nil {
				f.Done(nil)
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			lists := options.SendInitialEvents != nil && *options.SendInitialEvents // where that fails, client-go lists
			w, err := persist(ctx, f, !lists, func() (watch.Interface, error) { return from.WatchFuncWithContext(ctx, options) })
			if err != nil {
				return nil, err
			}
			return f.watch(w, lists), nil
		},
	}
}

// AskAgain is how soon what has failed is asked again, with a fifth of jitter. Left to itself
// client-go's reflector waits up to a minute, and all of that is time in which replicas are not
// lowered, or after a start in which nothing is answered.
const AskAgain = 5 * time.Second

// persist asks the API server, again and again while it refuses or cannot be reached. What says
// that the question itself is wrong is the reflector's to change.
func persist[T any](ctx context.Context, f *Freshness, again bool, ask func() (T, error)) (T, error) {
	for tries := 0; ; tries++ {
		answer, err := ask()
		if err == nil {
			return answer, nil
		}
		f.Done(err)
		if !again || !passes(err) {
			return answer, err
		}
		if tries%12 == 0 { // once a minute
			klog.FromContext(ctx).Error(err, "The API server does not tell, and is asked again", "what", f.What)
		}
		select {
		case <-ctx.Done():
			return answer, err
		case <-time.After(wait.Jitter(AskAgain, 0.2)):
		}
	}
}

// passes reports whether the same question may be answered later.
func passes(err error) bool {
	var status apierrors.APIStatus
	return !errors.As(err, &status) || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err)
}

// openWatch is a watch whose events are looked at as they pass.
type openWatch struct {
	watch.Interface
	events chan watch.Event
	ended  chan struct{}
	stop   sync.Once

	// Under the mutex of the freshness:
	since   time.Time
	listing bool // it begins with all there is, and has not come to the end of that
	heard   bool // something else than an error
}

// proved says whether the watch shows that what is known is in step. A nil watch does not.
func (w *openWatch) proved(now time.Time) bool {
	return w != nil && !w.listing && (w.heard || now.Sub(w.since) >= watchProves)
}

func (f *Freshness) watch(from watch.Interface, listing bool) watch.Interface {
	w := &openWatch{Interface: from, events: make(chan watch.Event), ended: make(chan struct{}), since: f.now(), listing: listing}
	f.mu.Lock()
	f.open = w
	f.mu.Unlock()
	go f.pass(w)
	return w
}

// pass hands events on until the watch ends.
func (f *Freshness) pass(w *openWatch) {
	defer close(w.events)
	defer f.closed(w)
	for e := range w.Interface.ResultChan() {
		f.heard(w, e)
		select {
		case w.events <- e:
		case <-w.ended:
			return
		}
	}
}

func (f *Freshness) heard(w *openWatch, e watch.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e.Type == watch.Error {
		f.failed = apierrors.FromObject(e.Object)
		return
	}
	w.heard = true
	if o, ok := e.Object.(metav1.ObjectMetaAccessor); ok && e.Type == watch.Bookmark && o.GetObjectMeta().GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
		w.listing = false
	}
	if !w.listing {
		f.failed = nil
	}
}

func (f *Freshness) closed(w *openWatch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.now(); w.proved(now) {
		f.last = now
	}
	if f.open == w {
		f.open = nil
	}
}

// ResultChan returns the events.
func (w *openWatch) ResultChan() <-chan watch.Event { return w.events }

// Stop ends the watch.
func (w *openWatch) Stop() {
	w.stop.Do(func() { close(w.ended) })
	w.Interface.Stop()
}
