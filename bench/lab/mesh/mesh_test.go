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

func TestWorkloadIsTheDeploymentOfThePod(t *testing.T) {
	yes := true
	owned := func(owner, hash string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Name: owner + "-abcde", Labels: map[string]string{"pod-template-hash": hash},
			OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: owner, Controller: &yes}},
		}}
	}
	for name, test := range map[string]struct {
		pod  *corev1.Pod
		want string
	}{
		"of a Deployment":             {owned("podinfo-6d8f4b5c9", "6d8f4b5c9"), "podinfo"},
		"whose name has a dash":       {owned("pod-info-6d8f4b5c9", "6d8f4b5c9"), "pod-info"},
		"of a ReplicaSet of its own":  {owned("podinfo", "6d8f4b5c9"), "podinfo"},
		"that nothing but itself has": {&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "alone"}}, "alone"},
	} {
		if got := workloadOf(test.pod); got != test.want {
			t.Errorf("a pod %s: got %q, want %q", name, got, test.want)
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
