package mesh

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The rules are meshpod's, and tested there.
func TestPodsAreOfTheWorkloadThatIstioNames(t *testing.T) {
	agent := &Agent{ctx: t.Context()}
	for label, want := range map[string]string{"pod-template-hash": "podinfo", "rollouts-pod-template-hash": "podinfo", "service.istio.io/workload-name": "6d8f4b5c9", "app": "podinfo-6d8f4b5c9"} {
		p := agent.newPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Name: "podinfo-6d8f4b5c9-abcde", GenerateName: "podinfo-6d8f4b5c9-", Labels: map[string]string{label: "6d8f4b5c9"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "podinfo-6d8f4b5c9", Controller: new(true)}},
		}})
		p.cancel()
		if p.workload != want {
			t.Errorf("with label %s: got %q, want %q", label, p.workload, want)
		}
	}
}

func TestStartDelayIsReadFromTheAnnotation(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 0, "20s": 20 * time.Second} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{StartDelayAnnotation: text}}}
		if got, err := startDelay(pod); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{StartDelayAnnotation: "soon"}}}
	if _, err := startDelay(pod); err == nil {
		t.Error("soon is no delay")
	}
}

func TestAppWorksOnSoManyRequestsAndNoMore(t *testing.T) {
	const limit, requests = 3, 12
	var inside, most atomic.Int64
	handler := limited(limit, func() {
		n := inside.Add(1)
		defer inside.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		time.Sleep(time.Millisecond)
	})
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	answers := make(chan int, requests)
	for range requests {
		go func() {
			response, err := http.Get(server.URL)
			if err != nil {
				answers <- 0
				return
			}
			_ = response.Body.Close()
			answers <- response.StatusCode
		}()
	}
	for range requests {
		if code := <-answers; code != http.StatusOK {
			t.Errorf("got status %d", code)
		}
	}
	if got := most.Load(); got > limit {
		t.Errorf("%d requests at once, want at most %d", got, limit)
	}
}
