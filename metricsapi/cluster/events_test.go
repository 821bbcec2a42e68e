package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

func TestEventName(t *testing.T) {
	h := hpa("podinfo")
	h.UID = "uid-1"
	p := hpas.Problem{Reason: hpas.ReasonBadQuery, Message: "it does not parse"}
	name := eventName(objectOf(h), p)
	if again := eventName(objectOf(h), p); again != name {
		t.Errorf("one problem has two names: %s, %s", name, again)
	}
	reborn := h
	reborn.HorizontalPodAutoscaler = h.DeepCopy()
	reborn.UID = "uid-2"
	for what, other := range map[string]string{
		"reason":  eventName(objectOf(h), hpas.Problem{Reason: hpas.ReasonNoQuery, Message: p.Message}),
		"message": eventName(objectOf(h), hpas.Problem{Reason: p.Reason, Message: "it does not parse!"}),
		"HPA":     eventName(objectOf(reborn), p),
	} {
		if other == name {
			t.Errorf("another %s has the same name, %s", what, name)
		}
	}
	long := h
	long.HorizontalPodAutoscaler = h.DeepCopy()
	long.Name = strings.Repeat("a", 199) + "-" + strings.Repeat("b", 53)
	for _, name := range []string{name, eventName(objectOf(long), p)} {
		if bad := validation.IsDNS1123Subdomain(name); len(bad) > 0 {
			t.Errorf("%s: %v", name, bad)
		}
	}
}

func TestClip(t *testing.T) {
	for text, want := range map[string]string{"short": "short", "exactly10!": "exactly10!", "longer than ten": "longer …", "aaaaaaé and more": "aaaaaa…"} {
		if got := clip(text, 10); got != want || len(got) > 10 {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

// What is created is complete; what exists already, or cannot exist, is not tried again; a failure
// is.
func TestAPIEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		var answers []error // for the next creations
		tries := 0
		client.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
			tries++
			if len(answers) == 0 {
				return false, nil, nil
			}
			err := answers[0]
			answers = answers[1:]
			return err != nil, nil, err
		})
		now := time.Now()
		events := newAPIEvents(client.CoreV1(), discardLog(), time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { events.Run(ctx); close(done) }()

		wait := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		h := hpa("podinfo")
		h.UID = "uid-1"
		p := hpas.Problem{Reason: hpas.ReasonBadQuery, Message: strings.Repeat("long ", 300)}
		answers = []error{errors.New("the API server is away"), errors.New("still away")}
		events.Warn(h, p)
		wait(time.Minute)
		if tries != 3 {
			t.Errorf("%d tries for two failures", tries)
		}
		got, err := client.CoreV1().Events("test").Get(ctx, eventName(objectOf(h), p), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		object := got.InvolvedObject
		if got.Type != corev1.EventTypeWarning || got.Reason != hpas.ReasonBadQuery || len(got.Message) != 1024 || got.Count != 1 ||
			object.Kind != "HorizontalPodAutoscaler" || object.Name != "podinfo" || object.UID != "uid-1" || !got.FirstTimestamp.Time.Equal(now) {
			t.Errorf("created %+v", got)
		}

		for what, answer := range map[string]error{
			"exists already": nil, // the fake keeps the first
			"namespace is on its way out": &apierrors.StatusError{ErrStatus: metav1.Status{
				Reason: metav1.StatusReasonForbidden, Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}},
			}},
			"exists says the server": apierrors.NewAlreadyExists(schema.GroupResource{Resource: "events"}, "x"),
		} {
			tries, answers = 0, []error{answer}
			events.Warn(h, p)
			wait(time.Hour)
			if tries != 1 {
				t.Errorf("%s: %d tries", what, tries)
			}
		}

		// It gives up at last, and goes on with others.
		tries, answers = 0, nil
		for range 100 {
			answers = append(answers, errors.New("no"))
		}
		events.Warn(h, hpas.Problem{Reason: hpas.ReasonNoQuery, Message: "x"})
		wait(3 * time.Hour)
		if tries != eventAttempts+1 {
			t.Errorf("%d tries, want %d", tries, eventAttempts+1)
		}
		answers = nil
		events.Warn(h, hpas.Problem{Reason: hpas.ReasonNoQuery, Message: "y"})
		synctest.Wait()
		if _, err := client.CoreV1().Events("test").Get(ctx, eventName(objectOf(h), hpas.Problem{Reason: hpas.ReasonNoQuery, Message: "y"}), metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
		cancel()
		<-done
	})
}

// eventAPI is the way to an API server that has all warnings already and notes when an event of a
// reason comes.
type eventAPI struct {
	takes time.Duration // each request

	mu   sync.Mutex
	came map[string]time.Time // the first of each reason
	n    int
}

func (a *eventAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPatch {
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(`{"kind":"Event","apiVersion":"v1"}`)), Request: r}, nil
	}
	var event corev1.Event
	if body, err := io.ReadAll(r.Body); err != nil || runtime.DecodeInto(scheme.Codecs.UniversalDeserializer(), body, &event) != nil {
		return nil, errors.New("not an event")
	}
	a.mu.Lock()
	if _, ok := a.came[event.Reason]; !ok {
		a.came[event.Reason] = time.Now()
	}
	a.n++
	takes := a.takes
	a.mu.Unlock()
	time.Sleep(takes)
	const exists = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"AlreadyExists","code":409}`
	return &http.Response{StatusCode: http.StatusConflict, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(exists)), Request: r}, nil
}

// A raise is told at once, whatever warnings there are to be told before; and those are not told at
// client-go's 5 a second.
func TestEventsOfRaisesComeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &eventAPI{takes: 3 * time.Second, came: map[string]time.Time{}}
		client, err := newEventsClient(&rest.Config{Host: "http://192.0.2.1", Transport: api})
		if err != nil {
			t.Fatal(err)
		}
		e := newAPIEvents(client, discardLog(), time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { e.Run(ctx); close(ended) }()
		h := hpa("podinfo")
		for i := range 60 {
			e.Warn(h, hpas.Problem{Reason: hpas.ReasonMuteSidecars, Message: fmt.Sprint(i)})
		}
		time.Sleep(time.Second) // the first warning is on its way, and the API server is slow
		began := time.Now()
		e.Report(h, hpas.Problem{Reason: hpas.ReasonSurgeScaled, Message: "raised"})
		synctest.Wait()
		api.mu.Lock()
		if at := api.came[hpas.ReasonSurgeScaled]; !at.Equal(began) {
			t.Errorf("the event of a raise has waited for %s", at.Sub(began))
		}
		api.takes = 0
		api.mu.Unlock()
		time.Sleep(3 * time.Second)
		for i := range 5000 { // as many HPAs
			e.Warn(h, hpas.Problem{Reason: hpas.ReasonNoisyRate, Message: fmt.Sprint(i)})
		}
		time.Sleep(200 * time.Second) // each is there already, and renewed
		if api.mu.Lock(); api.n < 5000 {
			t.Errorf("%d events in 200 s", api.n)
		}
		api.mu.Unlock()
		cancel()
		<-ended
	})
}

// An event that is told again is renewed and keeps when it began; one that has vanished is made
// again; who may not renew leaves it as it is.
func TestAnEventThatLastsIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		events := newAPIEvents(client.CoreV1(), discardLog(), time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { events.Run(ctx); close(done) }()
		h, p := hpa("podinfo"), hpas.Problem{Reason: hpas.ReasonMuteSidecars, Message: "mute"}
		get := func() *corev1.Event {
			t.Helper()
			e, err := client.CoreV1().Events("test").Get(ctx, eventName(objectOf(h), p), metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		began := time.Now()
		events.Warn(h, p)
		synctest.Wait()
		time.Sleep(10 * time.Minute)
		events.Warn(h, p)
		synctest.Wait()
		if e := get(); !e.LastTimestamp.Time.Equal(time.Now().Truncate(time.Second)) || !e.FirstTimestamp.Time.Equal(began.Truncate(time.Second)) {
			t.Errorf("renewed after 10 minutes: first %s, last %s", e.FirstTimestamp, e.LastTimestamp)
		}
		if err := client.CoreV1().Events("test").Delete(ctx, eventName(objectOf(h), p), metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		events.Warn(h, p)
		synctest.Wait()
		get()
		forbidden := 0
		client.PrependReactor("patch", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
			forbidden++
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "x", errors.New("no"))
		})
		events.Warn(h, p)
		time.Sleep(time.Hour)
		synctest.Wait()
		if forbidden != 1 {
			t.Errorf("%d tries to renew what may not be", forbidden)
		}
		cancel()
		<-done
	})
}
