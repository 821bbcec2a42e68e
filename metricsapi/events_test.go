package metricsapi

import (
	"context"
	"errors"
	"strings"
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
	clienttesting "k8s.io/client-go/testing"
)

func TestEventName(t *testing.T) {
	h := asks(t, "podinfo", "rps", "vector(1)")
	h.UID = "uid-1"
	p := Problem{ReasonBadQuery, "it does not parse"}
	name := eventName(h, p)
	if again := eventName(h, p); again != name {
		t.Errorf("one problem has two names: %s, %s", name, again)
	}
	reborn := h
	reborn.HorizontalPodAutoscaler = h.DeepCopy()
	reborn.UID = "uid-2"
	for what, other := range map[string]string{
		"reason":  eventName(h, Problem{ReasonNoQuery, p.Message}),
		"message": eventName(h, Problem{p.Reason, "it does not parse!"}),
		"HPA":     eventName(reborn, p),
	} {
		if other == name {
			t.Errorf("another %s has the same name, %s", what, name)
		}
	}
	long := h
	long.HorizontalPodAutoscaler = h.DeepCopy()
	long.Name = strings.Repeat("a", 199) + "-" + strings.Repeat("b", 53)
	for _, name := range []string{name, eventName(long, p)} {
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

// What is created is complete; what exists already, or cannot exist, is not tried again; a failure is.
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
		go func() { events.run(ctx); close(done) }()

		wait := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		h := asks(t, "podinfo", "rps", "vector(1)")
		h.UID = "uid-1"
		p := Problem{ReasonBadQuery, strings.Repeat("long ", 300)}
		answers = []error{errors.New("the API server is away"), errors.New("still away")}
		events.deliver(h, p)
		wait(time.Minute)
		if tries != 3 {
			t.Errorf("%d tries for two failures", tries)
		}
		got, err := client.CoreV1().Events("test").Get(ctx, eventName(h, p), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		object := got.InvolvedObject
		if got.Type != corev1.EventTypeWarning || got.Reason != ReasonBadQuery || len(got.Message) != 1024 || got.Count != 1 ||
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
			events.deliver(h, p)
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
		events.deliver(h, Problem{ReasonNoQuery, "x"})
		wait(3 * time.Hour)
		if tries != eventAttempts+1 {
			t.Errorf("%d tries, want %d", tries, eventAttempts+1)
		}
		answers = nil
		events.deliver(h, Problem{ReasonNoQuery, "y"})
		synctest.Wait()
		if _, err := client.CoreV1().Events("test").Get(ctx, eventName(h, Problem{ReasonNoQuery, "y"}), metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
		cancel()
		<-done
	})
}
