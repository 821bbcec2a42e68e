package cluster

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// Events creates events through the API server. A Warning's name follows from what it says, so that
// a restart repeats none: the one that exists already is renewed, as is one that is told again.
// What was done is not kept waiting by what is known of all HPAs, and has a client of its own.
type Events struct {
	client   corev1client.EventsGetter
	reports  corev1client.EventsGetter
	log      *slog.Logger
	now      func() time.Time
	done     eventQueue
	warnings eventQueue
	contain  Contain
}

type eventQueue workqueue.TypedRateLimitingInterface[*corev1.Event]

// Events a second, and at once: after a restart each warning of each HPA is created again, and told
// that it is there already.
const (
	eventQPS   = 50
	eventBurst = 100
)

func newEventsClient(config *rest.Config) (corev1client.EventsGetter, error) {
	return corev1client.NewForConfig(paced(config, eventQPS, eventBurst))
}

// eventAttempts bounds the tries to create an event; with the queue's back-off (5 ms, doubling) the
// last is after about a quarter of an hour.
const eventAttempts = 18

func newAPIEvents(client corev1client.EventsGetter, log *slog.Logger, now func() time.Time) *Events {
	queue := func() eventQueue {
		return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[*corev1.Event](5*time.Millisecond, 5*time.Minute))
	}
	return &Events{client: client, reports: client, log: log, now: now, done: queue(), warnings: queue()}
}

// Queued is how many events wait to be created.
func (e *Events) Queued() int { return e.done.Len() + e.warnings.Len() }

// Warn tells of a problem, or that it goes on: the API server keeps an event for a time after that
// (--event-ttl, an hour).
func (e *Events) Warn(h hpas.HPA, p hpas.Problem) {
	e.WarnOf(objectOf(h), p)
}

// Report tells of something that was done, each time: the message is to say when or how much.
func (e *Events) Report(h hpas.HPA, p hpas.Problem) {
	now := e.now()
	event := newEvent(objectOf(h), corev1.EventTypeNormal, p, now)
	event.Name += "." + strconv.FormatInt(now.UnixMilli(), 36)
	e.done.Add(event)
}

// Run creates events until the context ends.
func (e *Events) Run(ctx context.Context) {
	var both sync.WaitGroup
	both.Go(func() { e.drain(ctx, e.done) })
	both.Go(func() { e.drain(ctx, e.warnings) })
	both.Wait()
}

func (e *Events) drain(ctx context.Context, queue eventQueue) {
	stop := context.AfterFunc(ctx, queue.ShutDown)
	defer stop()
	for {
		event, shutdown := queue.Get()
		if shutdown || ctx.Err() != nil {
			return
		}
		if !e.contain.run("events", event.Namespace+"/"+event.Name, func() { e.create(ctx, queue, event) }) {
			queue.Forget(event)
		}
		queue.Done(event)
	}
}

func (e *Events) create(ctx context.Context, queue eventQueue, event *corev1.Event) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client := e.client
	if event.Type == corev1.EventTypeNormal {
		client = e.reports
	}
	_, err := client.Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		err = renew(ctx, client, event)
	}
	// A namespace that is on its way out takes no new events, and nobody is left to read them.
	done := err == nil || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) || ctx.Err() == context.Canceled
	switch {
	case done:
		queue.Forget(event)
	case queue.NumRequeues(event) < eventAttempts:
		queue.AddRateLimited(event)
	default:
		queue.Forget(event)
		e.log.Error("event not created", "namespace", event.Namespace, "hpa", event.InvolvedObject.Name, "reason", event.Reason, "message", event.Message, "err", err)
	}
}

// renew says of an event that exists that it still holds. When it began stays as it is.
func renew(ctx context.Context, client corev1client.EventsGetter, event *corev1.Event) error {
	patch, err := json.Marshal(map[string]any{"lastTimestamp": event.LastTimestamp})
	if err != nil {
		return err
	}
	_, err = client.Events(event.Namespace).Patch(ctx, event.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsForbidden(err) { // a role of before: it stays as it is
		return nil
	}
	return err
}

// objectOf is the HPA as what an event is about; where KEDA makes it, what its author has written.
func objectOf(h hpas.HPA) corev1.ObjectReference {
	if o := h.Scaled; o != nil {
		return corev1.ObjectReference{APIVersion: "keda.sh/v1alpha1", Kind: "ScaledObject", Namespace: h.Namespace, Name: o.Name, UID: o.UID}
	}
	return corev1.ObjectReference{
		APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler",
		Namespace: h.Namespace, Name: h.Name, UID: h.UID, ResourceVersion: h.ResourceVersion,
	}
}

// newEvent is an event on an object. Kubernetes allows 1024 bytes of message and 253 of name.
func newEvent(object corev1.ObjectReference, kind string, p hpas.Problem, now time.Time) *corev1.Event {
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: eventName(object, p), Namespace: cmp.Or(object.Namespace, metav1.NamespaceDefault)},
		InvolvedObject: object,
		Type:           kind, Reason: p.Reason, Message: clip(p.Message, 1024),
		Source:         corev1.EventSource{Component: "meshpulse"},
		FirstTimestamp: metav1.NewTime(now), LastTimestamp: metav1.NewTime(now), Count: 1,
		ReportingController: "meshpulse",
	}
}

func eventName(object corev1.ObjectReference, p hpas.Problem) string {
	identity := cmp.Or(string(object.UID), object.Namespace+"/"+object.Name)
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s", identity, p.Reason, p.Message))
	name := object.Name
	if len(name) > 200 {
		name = name[:200] + "x" // does not end in a dot or a dash
	}
	return name + "." + hex.EncodeToString(sum[:8])
}

// clip shortens a text to at most n bytes.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const more = "…"
	end := n - len(more)
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + more
}
