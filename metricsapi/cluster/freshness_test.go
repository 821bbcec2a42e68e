package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

func TestAWatchIsInStepWhileItIsOpen(t *testing.T) {
	bookmark := func(end string) watch.Event {
		return watch.Event{Type: watch.Bookmark, Object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{metav1.InitialEventsAnnotationKey: end}}}}
	}
	expired := watch.Event{Type: watch.Error, Object: &metav1.Status{Status: metav1.StatusFailure, Message: "too old"}}
	added := watch.Event{Type: watch.Added, Object: &corev1.Pod{}}
	const minute = time.Minute
	for name, tc := range map[string]struct {
		stream bool // the watch begins with all there is
		play   func(w *watch.FakeWatcher)
		age    time.Duration
		says   string // of what is stale
	}{
		"open without an event": {play: func(*watch.FakeWatcher) { time.Sleep(10 * minute) }},
		"just opened":           {play: func(*watch.FakeWatcher) { time.Sleep(watchProves / 2) }, age: watchProves / 2},
		"heard at once":         {play: func(w *watch.FakeWatcher) { w.Action(added.Type, added.Object) }},
		"ended":                 {play: func(w *watch.FakeWatcher) { time.Sleep(10 * minute); w.Stop(); time.Sleep(watchedFor) }, age: watchedFor},
		"ended long ago":        {play: func(w *watch.FakeWatcher) { time.Sleep(10 * minute); w.Stop(); time.Sleep(watchedFor + time.Second) }, age: watchedFor + time.Second, says: "for 21s"},
		"an error at once":      {play: func(w *watch.FakeWatcher) { w.Action(expired.Type, expired.Object); w.Stop(); time.Sleep(2 * minute) }, age: 2 * minute, says: "too old"},
		"an error, later": {play: func(w *watch.FakeWatcher) {
			time.Sleep(5 * minute)
			w.Action(expired.Type, expired.Object)
			w.Stop()
			time.Sleep(watchedFor)
		}, age: watchedFor},
		"streams all there is": {stream: true, play: func(w *watch.FakeWatcher) { w.Action(added.Type, added.Object); time.Sleep(2 * minute) }, age: 2 * minute, says: "for 2m0s"},
		"has streamed it":      {stream: true, play: func(w *watch.FakeWatcher) { e := bookmark("true"); w.Action(e.Type, e.Object); time.Sleep(2 * minute) }},
		"another bookmark":     {stream: true, play: func(w *watch.FakeWatcher) { e := bookmark(""); w.Action(e.Type, e.Object); time.Sleep(watchedFor) }, age: watchedFor},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, fake := NewFreshness("pods", time.Now), watch.NewFake()
				source := f.Follow(&cache.ListWatch{WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) { return fake, nil }})
				w, err := source.WatchWithContext(t.Context(), metav1.ListOptions{SendInitialEvents: &tc.stream})
				if err != nil {
					t.Fatal(err)
				}
				go func() {
					for range w.ResultChan() {
					}
				}()
				tc.play(fake)
				synctest.Wait()
				if got := f.Age(); got != tc.age {
					t.Errorf("in step %s ago, want %s", got, tc.age)
				}
				if err := f.Stale(); (err != nil) != (tc.says != "") || err != nil && !strings.Contains(err.Error(), tc.says) {
					t.Errorf("stale says %v, want %q", err, tc.says)
				}
				w.Stop()
			})
		})
	}
}

// What an informer asks for and does not get is counted from the last time that it did, and asked
// again within seconds.
func TestWhatFailsIsNotBelievedForLongAndSoonAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answer atomic.Pointer[error]
		no := errors.New("no route to host")
		answer.Store(new(error))
		f := NewFreshness("pods", time.Now)
		source := f.Follow(&cache.ListWatch{
			ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
				return &shrunkPods{}, *answer.Load()
			},
		})
		list := func() { _, _ = source.ListWithContext(t.Context(), metav1.ListOptions{}) }
		list()
		answer.Store(&no)
		listed := make(chan struct{})
		go func() { list(); close(listed) }()
		time.Sleep(watchedFor)
		if f.Stale() != nil {
			t.Errorf("after %s: %v", f.Age(), f.Stale())
		}
		time.Sleep(10 * time.Minute)
		if err := f.Stale(); err == nil || !strings.Contains(err.Error(), "the API server has told nothing of them for 10m20s: no route to host") {
			t.Errorf("after ten minutes: %v", err)
		}
		answer.Store(new(error))
		time.Sleep(AskAgain * 6 / 5)
		synctest.Wait()
		select {
		case <-listed:
		default:
			t.Error("it is not listed by now")
		}
		if f.Stale() != nil {
			t.Errorf("once there is an answer: %v", f.Stale())
		}
		if f = nil; f.Stale() != nil {
			t.Error("nothing at all is not believed")
		}
	})
}

// What asking again does not mend is client-go's to take otherwise.
func TestWhichErrorsAreAskedAgain(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for name, tc := range map[string]struct {
		err  error
		want bool
	}{
		"no right":                {apierrors.NewForbidden(pods, "", errors.New("no")), true},
		"no token":                {apierrors.NewUnauthorized("no"), true},
		"not reached":             {&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, true},
		"busy":                    {apierrors.NewTooManyRequests("busy", 1), true},
		"starting":                {apierrors.NewServiceUnavailable("starting"), true},
		"the version has expired": {apierrors.NewResourceExpired("old"), false},
		"no such option":          {apierrors.NewInvalid(schema.GroupKind{}, "", nil), false},
		"no such resource":        {apierrors.NewNotFound(pods, ""), false},
		"not that far yet":        {apierrors.NewTimeoutError("too large resource version", 1), false},
	} {
		if got := passes(tc.err); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// What is read when it is needed was read last whenever that was. So a read that fails is one that
// fails, however long nobody has asked before it, and however long nobody asks after it; reads that
// fail for a minute are not believed.
func TestWhatIsReadWhenItIsNeededFailsFromItsFirstFailureOn(t *testing.T) {
	now := time.Now()
	f := NewAskedFreshness("scales", func() time.Time { return now })
	failed := errors.New("timeout")
	for _, step := range []struct {
		after time.Duration
		err   error
		stale bool
	}{
		{after: time.Hour, err: nil},
		{after: time.Hour, err: failed},
		{after: time.Hour, err: failed}, // nobody asked between
		{after: 15 * time.Second, err: failed},
		{after: 15 * time.Second, err: failed},
		{after: 15 * time.Second, err: failed},
		{after: 15 * time.Second, err: failed},
		{after: 15 * time.Second, err: failed, stale: true},
		{after: 15 * time.Second, err: nil},
		{after: 15 * time.Second, err: failed},
	} {
		now = now.Add(step.after)
		f.Done(step.err)
		if err := f.Stale(); (err != nil) != step.stale {
			t.Errorf("%v after %s: %v, want stale: %v", step.err, step.after, err, step.stale)
		}
		now = now.Add(2 * time.Minute)
		if err := f.Stale(); err != nil || f.Age() != 0 {
			t.Errorf("%v, and nobody has asked since: %v, %s", step.err, err, f.Age())
		}
		now = now.Add(-2 * time.Minute)
	}
}

// deafAPI is an API server whose lists and watches can be forbidden.
type deafAPI struct {
	http.Handler
	mu   sync.Mutex
	deaf bool
}

func (d *deafAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	deaf := d.deaf
	d.mu.Unlock()
	if deaf && r.Method == http.MethodGet {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonForbidden, Message: "no rights", Code: http.StatusForbidden})
		return
	}
	d.Handler.ServeHTTP(w, r)
}

func (d *deafAPI) set(deaf bool) {
	d.mu.Lock()
	d.deaf = deaf
	d.mu.Unlock()
}

// The right to list pods is taken away after the start: a minute later the index says so, and when
// it comes back it does not any more.
func TestAPodIndexThatHasGoneDeafIsNotBelieved(t *testing.T) {
	api := &deafAPI{Handler: podList{3}}
	server := httptest.NewServer(api)
	defer server.Close()
	defer server.CloseClientConnections()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	c := new(fixture.Clock)
	x, err := NewPods(client, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { x.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	eventually(t, func() bool { return x.Synced() == nil }, func() string { return "not synced" })
	api.set(true)
	server.CloseClientConnections()
	eventually(t, func() bool { return fails(x.fresh) }, func() string { return "nothing is refused" })
	c.Shift(2 * time.Minute)
	eventually(t, func() bool {
		err := x.Synced()
		return err != nil && strings.Contains(err.Error(), "no rights")
	}, func() string { return fmt.Sprint("two minutes later: ", x.Synced()) })
	if err := x.Read(); err != nil || len(podsOf(x)) != 3 {
		t.Errorf("what was read once is %d pods, %v", len(podsOf(x)), err)
	}
	api.set(false)
	eventually(t, func() bool { return x.Synced() == nil }, func() string { return "it is not believed again" })
}

// fails says whether no watch is open, and what was asked last was refused.
func fails(f *Freshness) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open == nil && f.failed != nil
}
