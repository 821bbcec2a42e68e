package metricsapi

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

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
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
				f, fake := newFreshness("pods", time.Now), watch.NewFake()
				source := f.follow(&cache.ListWatch{WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) { return fake, nil }})
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
				if got := f.age(); got != tc.age {
					t.Errorf("in step %s ago, want %s", got, tc.age)
				}
				if err := f.stale(); (err != nil) != (tc.says != "") || err != nil && !strings.Contains(err.Error(), tc.says) {
					t.Errorf("stale says %v, want %q", err, tc.says)
				}
				w.Stop()
			})
		})
	}
}

// What an informer asks for and does not get is counted from the last time that it did, and asked again within seconds.
func TestWhatFailsIsNotBelievedForLongAndSoonAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answer atomic.Pointer[error]
		no := errors.New("no route to host")
		answer.Store(new(error))
		f := newFreshness("pods", time.Now)
		source := f.follow(&cache.ListWatch{
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
		if f.stale() != nil {
			t.Errorf("after %s: %v", f.age(), f.stale())
		}
		time.Sleep(10 * time.Minute)
		if err := f.stale(); err == nil || !strings.Contains(err.Error(), "the API server has told nothing of them for 10m20s: no route to host") {
			t.Errorf("after ten minutes: %v", err)
		}
		answer.Store(new(error))
		time.Sleep(askAgain * 6 / 5)
		synctest.Wait()
		select {
		case <-listed:
		default:
			t.Error("it is not listed by now")
		}
		if f.stale() != nil {
			t.Errorf("once there is an answer: %v", f.stale())
		}
		if f = nil; f.stale() != nil {
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

// What is read when it is needed was read last whenever that was. So a read that fails is one that fails, however long nobody has asked before
// it, and however long nobody asks after it; reads that fail for a minute are not believed.
func TestWhatIsReadWhenItIsNeededFailsFromItsFirstFailureOn(t *testing.T) {
	now := time.Now()
	f := newFreshness("scales", func() time.Time { return now })
	f.asked = true
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
		f.done(step.err)
		if err := f.stale(); (err != nil) != step.stale {
			t.Errorf("%v after %s: %v, want stale: %v", step.err, step.after, err, step.stale)
		}
		now = now.Add(2 * time.Minute)
		if err := f.stale(); err != nil || f.age() != 0 {
			t.Errorf("%v, and nobody has asked since: %v, %s", step.err, err, f.age())
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

// The right to list pods is taken away after the start: a minute later the index says so, and when it comes back it does not any more.
func TestAPodIndexThatHasGoneDeafIsNotBelieved(t *testing.T) {
	api := &deafAPI{Handler: podList{3}}
	server := httptest.NewServer(api)
	defer server.Close()
	defer server.CloseClientConnections()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	c := newShiftedClock()
	x, err := newPodIndex(client, c.now)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { x.run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	eventually(t, func() bool { return x.synced() == nil }, func() string { return "not synced" })
	api.set(true)
	server.CloseClientConnections()
	eventually(t, func() bool { return fails(x.fresh) }, func() string { return "nothing is refused" })
	c.shift(2 * time.Minute)
	eventually(t, func() bool {
		err := x.synced()
		return err != nil && strings.Contains(err.Error(), "no rights")
	}, func() string { return fmt.Sprint("two minutes later: ", x.synced()) })
	if err := x.read(); err != nil || len(podsOf(x)) != 3 {
		t.Errorf("what was read once is %d pods, %v", len(podsOf(x)), err)
	}
	api.set(false)
	eventually(t, func() bool { return x.synced() == nil }, func() string { return "it is not believed again" })
}

// fails says whether no watch is open, and what was asked last was refused.
func fails(f *freshness) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open == nil && f.failed != nil
}

// shiftedClock is the clock, and a time more.
type shiftedClock struct {
	mu   sync.Mutex
	more time.Duration
}

func newShiftedClock() *shiftedClock { return &shiftedClock{} }

func (c *shiftedClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.more)
}

func (c *shiftedClock) shift(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.more += by
}

// A server that the API server tells nothing any more stays alive and ready, says so, and its metric too.
func TestServeWhileTheAPIServerTellsNothing(t *testing.T) {
	api := newFakeAPI(t, asks(t, "podinfo", "bad", "sum("))
	c := newShiftedClock()
	s := startServer(t, func(o *Options) {
		o.Standalone, o.HPADir, o.BindAddress, o.Kubeconfig, o.Now = false, "", "127.0.0.1", api.kubeconfig(t), c.now
	})
	s.token = "hpa"
	eventually(t, func() bool { return s.provider.rules.holder.hpasFresh.age() == 0 && s.pods.synced() == nil }, func() string { return "nothing is watched" })
	if _, body := s.get("/readyz?verbose"); !strings.Contains(body, "[+]pods ok") || !strings.Contains(body, "[+]hpas ok") {
		t.Errorf("at first: %s", body)
	}
	api.deaf.Store(true)
	api.CloseClientConnections()
	eventually(t, func() bool { return fails(s.provider.rules.holder.hpasFresh) && fails(s.pods.fresh) }, func() string { return "nothing is refused" })
	c.shift(2 * time.Minute)
	for path, want := range map[string]int{"/readyz": http.StatusOK, "/livez": http.StatusOK, "/healthz": http.StatusOK} {
		if code, body := s.get(path); code != want {
			t.Errorf("%s gives %d: %s", path, code, body)
		}
	}
	if _, body := s.get("/readyz?verbose"); !strings.Contains(body, "[+]pods (nothing heard of them for more than 20 seconds: replicas are not lowered) ok") || !strings.Contains(body, "[+]hpas (nothing") {
		t.Errorf("two minutes later: %s", body)
	}
	_, body := s.get("/metrics")
	for _, resource := range []string{"pods", "hpas"} {
		if !strings.Contains(body, `meshpulse_metricsapi_watch_seconds_since_success{resource="`+resource+`"} 12`) { // 120 and some
			t.Errorf("no metric of %s: %s", resource, body)
		}
	}
	if !strings.Contains(body, `meshpulse_metricsapi_watch_seconds_since_success{resource="scales"} 0`) {
		t.Errorf("scales, which nobody has asked for, are not in step: %s", body)
	}
}

// What is not in step lowers nothing. A rolling update that the index has not heard of leaves pods in it that are gone, and hides new ones.
func TestWhatIsStaleLowersNothing(t *testing.T) {
	const whole = 10 * time.Minute
	stale := &freshness{what: "HPAs", now: time.Now}
	for name, tc := range map[string]struct {
		pods, hpas bool // are stale
		target     string
		want       string
		deaf       string
	}{
		"nothing":                          {target: "10", want: "20, 4 expected"}, // the old ones are mute
		"the pods":                         {pods: true, target: "10", want: "30 held, 4 expected", deaf: "of pods"},
		"the pods, and the load asks more": {pods: true, target: "1", want: "10, 4 expected", deaf: "of pods"},
		"the HPAs":                         {hpas: true, target: "10", want: "30 held, 4 expected", deaf: "of HPAs"},
		"the HPAs, and the load asks more": {hpas: true, target: "1", want: "10, 4 expected", deaf: "of HPAs"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newHeldCluster(t, sentBy{workload: "podinfo", pods: []string{"o1", "o2"}, from: 5 * time.Second, to: time.Minute, rps: 5},
				sentBy{workload: "podinfo", pods: []string{"n1", "n2"}, from: 70 * time.Second, to: whole, rps: 5})
			c.add("podinfo", -time.Hour, "o1", "o2")
			c.add("podinfo", time.Minute, "n1", "n2")
			c.target = tc.target
			c.change = func(h *holder) {
				if tc.pods {
					h.pods = stalePods{c.pods}
				}
				if tc.hpas {
					h.hpasFresh = stale
				}
			}
			v, refused := c.answer(strings.Replace(namespaceWide, "destination_workload_namespace", `destination_workload="podinfo",destination_workload_namespace`, 1), whole)
			if refused != nil || shown(v) != tc.want {
				t.Errorf("got %s (%s), refused %v, want %s", shown(v), v.reason, refused, tc.want)
			}
			told := ""
			for _, p := range v.problems {
				if p.Reason == ReasonDeafWatch {
					told += p.Message
				}
			}
			if (told != "") != (tc.deaf != "") || !strings.Contains(told, tc.deaf) {
				t.Errorf("told %q, want %q", told, tc.deaf)
			}
		})
	}
}

// stalePods have not been heard of for long.
type stalePods struct{ fixedPods }

func (stalePods) synced() error { return &deafError{what: "pods", age: 2 * time.Minute} }

// A scale that may not be read is kept by what the HPA's status says, unless that is from long ago.
func TestAStaleStatusIsNotTheReplicas(t *testing.T) {
	stale := &freshness{what: "HPAs", now: time.Now}
	h := &holder{scales: fixedScale(-1), status: func(string, string) (int32, bool) { return 2, true }, scalesFresh: newFreshness("scales", time.Now)}
	a := asking("podinfo", autoscalingv2.AverageValueMetricType, "10", 2)
	if target, err := h.replicas(t.Context(), a); err != nil || target.Spec != 2 {
		t.Errorf("got %+v, %v, want the HPA's status", target, err)
	}
	if h.hpasFresh = stale; h.hpasFresh.stale() == nil {
		t.Fatal("not stale")
	}
	if target, err := h.replicas(t.Context(), a); err == nil {
		t.Errorf("got %+v of a status that is not believed", target)
	}
	if h.scalesFresh.failed != nil {
		t.Errorf("that it may not be read is an answer, not %v", h.scalesFresh.failed)
	}
	h.scales = fixedScale(-2)
	if _, err := h.replicas(t.Context(), a); err == nil || h.scalesFresh.failed == nil {
		t.Errorf("a read that failed is not noted: %v", err)
	}
	h.hpasFresh, h.scalesFresh = nil, &freshness{what: "scales", asked: true, now: time.Now, failed: errors.New("timeout"), tried: time.Now(), last: time.Now().Add(-2 * time.Minute)}
	if target, err := h.replicas(t.Context(), a); err != nil || target.Spec != 2 {
		t.Errorf("no scale could be read for long: got %+v, %v, want the HPA's status", target, err)
	}
	h.scalesFresh = &freshness{what: "scales", asked: true, now: time.Now, last: time.Now().Add(-time.Hour)} // read, an hour ago
	if target, err := h.replicas(t.Context(), a); err == nil {
		t.Errorf("one read of a scale has failed: got %+v of a status that may be from before a raise", target)
	}
	h.scales, h.scalesFresh = fixedScale(-4), newFreshness("scales", time.Now)
	if target, err := h.replicas(t.Context(), a); err != nil || target.Spec != 2 || h.scalesFresh.failed != nil {
		t.Errorf("that there is no such kind is an answer: got %+v, %v, %v", target, err, h.scalesFresh.failed)
	}
}
