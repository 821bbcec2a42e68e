package cluster

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func TestOnlyThatTheAPIServerHasNoSuchPodDeniesIt(t *testing.T) {
	list := func(names ...string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			l := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
			for _, name := range names {
				l.Items = append(l.Items, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: name}})
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(l)
		}
	}
	for name, tc := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		denies bool
	}{
		"it has none":                {list(), true},
		"it has it":                  {list("web-0"), false},
		"it has others":              {list("web-1"), true},
		"it may not be asked":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, false},
		"it does not answer in time": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan string, 1)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked <- r.URL.Path + " " + r.URL.Query().Get("fieldSelector") + " " + r.URL.Query().Get("resourceVersion")
				tc.answer(w, r)
			}))
			defer server.Close()
			client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
			if err != nil {
				t.Fatal(err)
			}
			x, err := NewPods(client, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			if denies := x.Denies("test", "web-0"); denies != tc.denies {
				t.Errorf("denies it: %t", denies)
			}
			// As it is now, not as a cache has it.
			if got, want := <-asked, "/api/v1/namespaces/test/pods metadata.name=web-0,status.phase!=Failed,status.phase!=Succeeded "; got != want {
				t.Errorf("asked for %q, want %q", got, want)
			}
		})
	}
}
