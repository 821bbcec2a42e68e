package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
)

// unanswered is the way to an API server that takes requests and answers none.
type unanswered struct{ waited time.Duration } // by all requests together

func (u *unanswered) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	<-r.Context().Done()
	u.waited += time.Since(began)
	return nil, r.Context().Err()
}

// The first read of a scale has to find out what its kind is called, and no context bounds that.
func TestAScaleThatIsNotAnsweredEndsWithinARaise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const raise = 5 * time.Second // what one may take
		var away unanswered
		s, err := newScales(&rest.Config{Host: "http://192.0.2.1", Transport: &away})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Now(t.Context(), "test", deployment("podinfo"))
		if err == nil || away.waited == 0 || away.waited > raise {
			t.Errorf("after %s: %v, want an error within %s", away.waited, err, raise)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if _, err = s.Recent(ctx, "test", deployment("podinfo")); err == nil || time.Since(began) != time.Second {
			t.Errorf("an answer that has a second waits for %s, error %v", time.Since(began), err)
		}
		time.Sleep(time.Minute) // what nobody waits for any more ends too
	})
}

// specOf is what a scale that was read asks for.
func specOf(s *autoscalingv1.Scale, err error) (int32, error) {
	if err != nil {
		return 0, err
	}
	return s.Spec.Replicas, nil
}

func deployment(name string) autoscalingv2.CrossVersionObjectReference {
	return autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: name}
}

func rollout(name string) autoscalingv2.CrossVersionObjectReference {
	return autoscalingv2.CrossVersionObjectReference{APIVersion: "argoproj.io/v1alpha1", Kind: "Rollout", Name: name}
}

// scaleAPI is the way to an API server that has Deployments, and Rollouts once they are installed.
type scaleAPI struct {
	mu                         sync.Mutex
	replicas                   int
	discoveries, gets          int
	installed, forbidden, away bool
	slow                       time.Duration // a read of a scale takes so long
}

func (a *scaleAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	code, body, slow := a.answer(r)
	a.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	header := http.Header{"Content-Type": {"application/json"}}
	return &http.Response{StatusCode: code, Status: http.StatusText(code), Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (a *scaleAPI) answer(r *http.Request) (code int, body string, slow time.Duration) {
	group := func(name, version string) string {
		return fmt.Sprintf(`{"name":%q,"versions":[{"groupVersion":"%[1]s/%[2]s","version":%[3]q}],"preferredVersion":{"groupVersion":"%[1]s/%[2]s","version":%[3]q}}`, name, version, version)
	}
	resources := func(group, resource, kind string) string {
		return fmt.Sprintf(`{"kind":"APIResourceList","apiVersion":"v1","groupVersion":%q,"resources":[{"name":%q,"namespaced":true,"kind":%q,"verbs":["get"]},`+
			`{"name":"%[2]s/scale","namespaced":true,"kind":"Scale","group":"autoscaling","version":"v1","verbs":["get","update"]}]}`, group, resource, kind)
	}
	path := r.URL.Path
	switch {
	case a.away && !strings.HasSuffix(path, "/scale"):
		return http.StatusServiceUnavailable, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":503}`, 0
	case path == "/api":
		a.discoveries++
		return http.StatusOK, `{"kind":"APIVersions","versions":["v1"]}`, 0
	case path == "/apis":
		a.discoveries++
		groups := group("apps", "v1")
		if a.installed {
			groups += "," + group("argoproj.io", "v1alpha1")
		}
		return http.StatusOK, `{"kind":"APIGroupList","apiVersion":"v1","groups":[` + groups + `]}`, 0
	case path == "/api/v1":
		return http.StatusOK, `{"kind":"APIResourceList","groupVersion":"v1","resources":[]}`, 0
	case path == "/apis/apps/v1":
		return http.StatusOK, resources("apps/v1", "deployments", "Deployment"), 0
	case path == "/apis/argoproj.io/v1alpha1":
		return http.StatusOK, resources("argoproj.io/v1alpha1", "rollouts", "Rollout"), 0
	case a.forbidden:
		return http.StatusForbidden, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`, 0
	}
	if r.Method == http.MethodPut {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Sscanf(string(body[strings.Index(string(body), `"replicas":`):]), `"replicas":%d`, &a.replicas)
	} else {
		a.gets++
	}
	parts := strings.Split(path, "/")
	return http.StatusOK, fmt.Sprintf(`{"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"name":%q,"namespace":"test","resourceVersion":"1"},"spec":{"replicas":%d},"status":{"replicas":%[2]d}}`,
		parts[len(parts)-2], a.replicas), a.slow
}

// take returns how many discoveries and reads of scales there were, and begins to count anew.
func (a *scaleAPI) take() (discoveries, gets int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	discoveries, gets = a.discoveries, a.gets
	a.discoveries, a.gets = 0, 0
	return discoveries, gets
}

func (a *scaleAPI) clients(t *testing.T) *Scales {
	t.Helper()
	s, err := newScales(&rest.Config{Host: "http://192.0.2.1", Transport: a})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// However many ask, a target is read once a second.
func TestAnswersShareTheReadOfAScale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &scaleAPI{replicas: 3, slow: 300 * time.Millisecond}
		s := api.clients(t)
		all := func(n int, want int32) {
			t.Helper()
			var group sync.WaitGroup
			for range n {
				group.Go(func() {
					if got, err := specOf(s.Recent(t.Context(), "test", deployment("podinfo"))); err != nil || got != want {
						t.Errorf("%d replicas, error %v, want %d", got, err, want)
					}
				})
			}
			group.Wait()
		}
		all(3000, 3) // 0.3 s
		api.mu.Lock()
		api.replicas = 5
		api.mu.Unlock()
		all(10, 3)
		if _, gets := api.take(); gets != 1 {
			t.Errorf("%d reads within a second, want 1", gets)
		}
		time.Sleep(699 * time.Millisecond)
		all(10, 3)
		time.Sleep(time.Millisecond)
		all(10, 5)
		if _, gets := api.take(); gets != 1 {
			t.Errorf("%d reads in the next second, want 1", gets)
		}
		for range 3 { // another target is read by itself, and what failed is not asked for again either
			api.mu.Lock()
			api.forbidden = true
			api.mu.Unlock()
			if _, err := s.Recent(t.Context(), "test", deployment("other")); !apierrors.IsForbidden(err) {
				t.Errorf("error %v", err)
			}
		}
		if n := len(s.reads.known); n > 2 {
			t.Errorf("%d reads are kept", n)
		}
		time.Sleep(2 * time.Second)
		_, _ = s.Recent(t.Context(), "test", deployment("podinfo"))
		if n := len(s.reads.known); n != 1 {
			t.Errorf("%d reads are kept, want the newest", n)
		}
	})
}

// The one who asked first may go away: the others get the answer.
func TestAReadOutlivesWhoAskedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &scaleAPI{replicas: 3, slow: 300 * time.Millisecond}
		s := api.clients(t)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		first := make(chan error)
		go func() {
			_, err := s.Recent(ctx, "test", deployment("podinfo"))
			first <- err
		}()
		synctest.Wait()
		got, err := specOf(s.Recent(t.Context(), "test", deployment("podinfo")))
		if err != nil || got != 3 {
			t.Errorf("%v, error %v", got, err)
		}
		if err := <-first; err == nil {
			t.Error("the first has waited beyond its time")
		}
	})
}

// Held answers of as many targets as there may be do not keep a raise waiting, nor does the
// client's limit keep them.
func TestARaiseWaitsForNoHeldAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &scaleAPI{replicas: 3}
		s := api.clients(t)
		var group sync.WaitGroup
		began := time.Now()
		for i := range 1000 {
			group.Go(func() {
				if _, err := s.Recent(t.Context(), "test", deployment(fmt.Sprint("d-", i))); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		sc, err := s.Now(t.Context(), "test", deployment("podinfo"))
		if err != nil {
			t.Fatal(err)
		}
		sc.Spec.Replicas = 7
		if err := s.Update(t.Context(), deployment("podinfo"), sc); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited > 0 {
			t.Errorf("the raise waited for %s", waited)
		}
		group.Wait()
		if waited := time.Since(began); waited > 4*time.Second {
			t.Errorf("a thousand targets took %s", waited)
		}
	})
}

// What a raise has written is known at once: who reads an older value would take it for somebody's
// lowering.
func TestARaiseIsReadAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &scaleAPI{replicas: 3}
		s := api.clients(t)
		if got, err := specOf(s.Recent(t.Context(), "test", deployment("podinfo"))); err != nil || got != 3 {
			t.Fatalf("%v, error %v", got, err)
		}
		sc, err := s.Now(t.Context(), "test", deployment("podinfo"))
		if err != nil {
			t.Fatal(err)
		}
		sc.Spec.Replicas = 7
		if err := s.Update(t.Context(), deployment("podinfo"), sc); err != nil {
			t.Fatal(err)
		}
		if got, err := specOf(s.Recent(t.Context(), "test", deployment("podinfo"))); err != nil || got != 7 {
			t.Errorf("%v after a raise to 7, error %v", got, err)
		}
	})
}

// A kind that is not there costs one discovery in half a minute, whoever asks for it and however it
// is spelt; those that are there go on, a discovery that fails included; one that is installed is
// found.
func TestUnknownKindsAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &scaleAPI{replicas: 3}
		s := api.clients(t)
		misspelt := func(n int) {
			t.Helper()
			for i := range n {
				kind := fmt.Sprint("Deploymnet", i%7)
				_, err := s.Recent(t.Context(), "test", autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: kind, Name: "podinfo"})
				if err == nil || !strings.Contains(err.Error(), kind) {
					t.Errorf("a target of kind %s gives error %v", kind, err)
				}
			}
		}
		misspelt(20)
		if n, _ := api.take(); n != 2 {
			t.Errorf("%d requests of discovery for 20 answers, want /api and /apis", n)
		}
		if _, err := s.Recent(t.Context(), "test", rollout("podinfo")); err == nil {
			t.Error("Rollouts are not installed")
		}
		api.mu.Lock()
		api.installed = true
		api.mu.Unlock()
		time.Sleep(discoveryLife)
		if got, err := specOf(s.Recent(t.Context(), "test", rollout("podinfo"))); err != nil || got != 3 {
			t.Errorf("an installed kind gives %v, error %v", got, err)
		}
		misspelt(20)
		if n, _ := api.take(); n != 2 {
			t.Errorf("%d requests of discovery, want 2", n)
		}
		time.Sleep(discoveryLife)
		api.mu.Lock()
		api.away = true
		api.mu.Unlock()
		misspelt(2)
		if got, err := specOf(s.Recent(t.Context(), "test", deployment("podinfo"))); err != nil || got != 3 {
			t.Errorf("a kind that is there gives %v, error %v", got, err)
		}
	})
}
