package metricsapi

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// fakeAPI is as much of an API server as a server in a cluster needs to start: lists that never
// change, reviews that know one token and one account, and events that are written down. Whether a
// real one agrees is for the lab's tests.
type fakeAPI struct {
	*httptest.Server
	hpas *autoscalingv2.HorizontalPodAutoscalerList
	deaf atomic.Bool // lists and watches are forbidden
	away atomic.Bool // connections end without an answer
	// refuses is a kind of review of which everyone is refused, nil: none is.
	refuses atomic.Pointer[string]
	// late are what is not listed before something is closed.
	late       map[string]chan struct{}
	namespaces []corev1.Namespace
	apiService string       // in JSON; "" is none
	looks      atomic.Int32 // at it
	// others answers for metrics of which the API server has another adapter asked.
	others http.HandlerFunc
	// scaled is the list of ScaledObjects, in JSON; "": KEDA is not there.
	scaled string

	mu     sync.Mutex
	events map[string]string // reason by name
	// annotate is what the HPAs' annotations have had added since they were listed.
	annotate map[string]string
}

func newFakeAPI(t *testing.T, hpas ...hpas.HPA) *fakeAPI {
	f := &fakeAPI{events: map[string]string{}, hpas: &autoscalingv2.HorizontalPodAutoscalerList{
		TypeMeta: metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscalerList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"},
	}}
	for _, h := range hpas {
		f.hpas.Items = append(f.hpas.Items, *h.HorizontalPodAutoscaler)
	}
	f.Server = httptest.NewTLSServer(f)
	t.Cleanup(func() {
		f.CloseClientConnections() // watches
		f.Close()
	})
	return f
}

func (f *fakeAPI) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})
}

func (f *fakeAPI) kubeconfig(t *testing.T) string {
	t.Helper()
	path, ca := filepath.Join(t.TempDir(), "kubeconfig"), filepath.Join(t.TempDir(), "ca.crt")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {token: own}}]\n"+
		"clusters: [{name: a, cluster: {server: %q, certificate-authority: %q}}]\n", f.URL, ca)
	for path, data := range map[string][]byte{path: []byte(text), ca: f.ca()} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var answer any
	last := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	code := http.StatusOK
	if late := f.late[last]; late != nil {
		select {
		case <-late:
		case <-r.Context().Done():
			return
		}
	}
	if f.away.Load() {
		panic(http.ErrAbortHandler)
	}
	refused := f.refuses.Load() != nil && *f.refuses.Load() == last
	switch {
	case f.deaf.Load() && r.Method == http.MethodGet:
		code = http.StatusForbidden
		answer = metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonForbidden, Code: int32(code)}
	case r.URL.Query().Get("sendInitialEvents") != "":
		code = http.StatusUnprocessableEntity // the client lists instead
		answer = metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonInvalid, Code: int32(code)}
	case r.URL.Query().Get("watch") != "":
		w.Header().Set("Content-Type", "application/json")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return
	case last == "horizontalpodautoscalers":
		answer = f.hpas
	case last == "v1beta1.external.metrics.k8s.io" && f.apiService != "":
		f.looks.Add(1)
		answer = json.RawMessage(f.apiService)
	case strings.HasPrefix(r.URL.Path, "/apis/keda.sh"):
		answer = json.RawMessage(f.scaled)
		if f.scaled == "" {
			code = http.StatusNotFound
			answer = metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: int32(code)}
		}
	case last == "namespaces":
		answer = corev1.NamespaceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NamespaceList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: f.namespaces}
	case strings.HasPrefix(r.URL.Path, "/api/v1/namespaces/meshpulse-system/serviceaccounts/meshpulse-"):
		answer = giveToken(r)
	case strings.Contains(r.URL.Path, ".metrics.k8s.io/v1beta") && f.others != nil:
		w.Header().Set("Content-Type", "application/json")
		f.others(w, r)
		return
	case strings.Contains(r.URL.Path, "/horizontalpodautoscalers/"):
		answer, code = f.hpa(last)
	case last == "extension-apiserver-authentication":
		answer = f.authentication()
	case last == "configmaps":
		answer = corev1.ConfigMapList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMapList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []corev1.ConfigMap{f.authentication()}}
	case last == "tokenreviews":
		review := reviewToken(r)
		review.Status.Authenticated = review.Status.Authenticated && !refused
		answer = review
	case last == "subjectaccessreviews":
		review := reviewAccess(r)
		review.Status.Allowed = review.Status.Allowed && !refused
		answer = review
	case last == "events":
		answer = f.write(r)
	case last == "pods":
		answer = corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}}
	default: // what else is listed: there are none
		answer = metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadataList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(answer)
}

// hpa is the newest HPA of a name.
func (f *fakeAPI) hpa(name string) (answer any, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.hpas.Items {
		if h.Name == name {
			h.TypeMeta = metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler"}
			h.Annotations = maps.Clone(h.Annotations)
			maps.Copy(h.Annotations, f.annotate)
			return &h, http.StatusOK
		}
	}
	return metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound}, http.StatusNotFound
}

func (f *fakeAPI) authentication() corev1.ConfigMap {
	return corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "extension-apiserver-authentication", ResourceVersion: "1"},
		Data: map[string]string{
			"client-ca-file": string(f.ca()), "requestheader-client-ca-file": string(f.ca()), "requestheader-allowed-names": `["front-proxy-client"]`,
			"requestheader-username-headers": `["X-Remote-User"]`, "requestheader-group-headers": `["X-Remote-Group"]`, "requestheader-extra-headers-prefix": `["X-Remote-Extra-"]`,
		},
	}
}

// read decodes a body, which is protobuf as client-go likes it; what cannot be read stays zero and
// is refused.
func read[T any, P interface {
	*T
	runtime.Object
}](r *http.Request,
) (v T) {
	if body, err := io.ReadAll(r.Body); err == nil {
		_, _, _ = scheme.Codecs.UniversalDeserializer().Decode(body, nil, P(&v))
	}
	return v
}

func reviewToken(r *http.Request) authenticationv1.TokenReview {
	review := read[authenticationv1.TokenReview](r)
	review.Status = authenticationv1.TokenReviewStatus{Authenticated: review.Spec.Token == "hpa" || review.Spec.Token == "stranger" || review.Spec.Token == "tenant"}
	review.Status.User.Username = review.Spec.Token
	return review
}

// giveToken gives a service account's token of as long as it is asked for.
func giveToken(r *http.Request) authenticationv1.TokenRequest {
	request := read[authenticationv1.TokenRequest](r)
	request.TypeMeta = metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"}
	_, account, _ := strings.Cut(strings.TrimSuffix(r.URL.Path, "/token"), "meshpulse-system/serviceaccounts/meshpulse-")
	request.Status.Token = fmt.Sprintf("%s-for-%ds", account, *request.Spec.ExpirationSeconds)
	return request
}

func reviewAccess(r *http.Request) authorizationv1.SubjectAccessReview {
	review := read[authorizationv1.SubjectAccessReview](r)
	a := review.Spec.ResourceAttributes
	tenant := review.Spec.User == "tenant" && a != nil && a.Namespace == "test" && a.Group == explain.Group && a.Resource != "queries" && (a.Verb == "get" || a.Verb == "list")
	review.Status.Allowed = review.Spec.User == "hpa" || tenant
	return review
}

func (f *fakeAPI) write(r *http.Request) corev1.Event {
	event := read[corev1.Event](r)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events[event.Name] = event.Reason
	return event
}

func (f *fakeAPI) reasons() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, reason := range f.events {
		all = append(all, reason)
	}
	return strings.Join(all, " ")
}

// In a cluster the API server says who a caller is and what it may read, and takes the events.
func TestServeInACluster(t *testing.T) {
	api := newFakeAPI(t, asks(t, "podinfo", "bad", "sum("))
	s := startServer(t, func(o *Options) {
		o.Standalone, o.HPADir, o.BindAddress, o.Kubeconfig = false, "", "127.0.0.1", api.kubeconfig(t)
	})
	eventually(t, func() bool { return api.reasons() == hpas.ReasonBadQuery }, func() string { return "events are " + api.reasons() })
	for token, want := range map[string]int{"": http.StatusForbidden, "nobody": http.StatusUnauthorized, "stranger": http.StatusForbidden, "hpa": http.StatusOK} {
		s.token = token
		for _, path := range []string{apiPath, "/debug/hpas", "/metrics"} {
			if code, body := s.get(path); code != want {
				t.Errorf("%s with token %q gives %d, want %d: %.200s", path, token, code, want, body)
			}
		}
	}
	s.token = "hpa"
	s.discovers(discovered)
	if got := s.refused("test", "prometheus-query", "query-name=bad", http.StatusBadRequest); !strings.Contains(got, "not valid PromQL") {
		t.Errorf("a bad query says %s", got)
	}
	if got := s.refused("test", "istio-requests-per-second", "", http.StatusServiceUnavailable); !strings.Contains(got, "no sidecar") {
		t.Errorf("without a sidecar: %s", got)
	}
}

// A server is ready once it has read HPAs and pods: what asks it before could only be held.
func TestReadyOnceHPAsAndPodsAreRead(t *testing.T) {
	api := newFakeAPI(t)
	o, _ := testOptions(t)
	o.Standalone, o.HPADir, o.BindAddress, o.Kubeconfig = false, "", "127.0.0.1", api.kubeconfig(t)
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.listener.Close() }()
	ready := func() string {
		all := ""
		for _, c := range s.config.ReadyzChecks {
			if what, ok := c.(readCheck); ok && c.Check(nil) == nil {
				all += what.Name() + " "
			}
		}
		return all
	}
	if got := ready(); got != "" {
		t.Errorf("before anything is read %sare ready", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = s.source.Run(ctx) })
	eventually(t, func() bool { return ready() == "hpas " }, func() string { return ready() + "are ready, want hpas" })
	running.Go(func() { s.api.Pods.Run(ctx) })
	eventually(t, func() bool { return ready() == "hpas pods " }, func() string { return ready() + "are ready, want hpas pods" })
}

// Before a raise the API server is asked for the HPA: no watch tells what it has not brought yet.
func TestARaiseAsksTheAPIServerForTheHPA(t *testing.T) {
	api := newFakeAPI(t, asks(t, "podinfo", "rps", "vector(1)"))
	s := startServer(t, func(o *Options) {
		o.Standalone, o.HPADir, o.BindAddress, o.Kubeconfig = false, "", "127.0.0.1", api.kubeconfig(t)
	})
	api.mu.Lock()
	api.annotate = map[string]string{"meshpulse.io/surge-action": "off"}
	api.mu.Unlock()
	x := s.provider.rules.actor
	h, err := x.fresh(t.Context(), "test", "podinfo")
	if err != nil || h.Annotations["meshpulse.io/surge-action"] != "off" {
		t.Errorf("the HPA as it is now is %v, error %v", h, err)
	}
	if h, ok := x.hpa("test", "podinfo"); !ok || h.Annotations["meshpulse.io/surge-action"] != "" {
		t.Errorf("the watch has brought %v", h)
	}
	if _, err := x.fresh(t.Context(), "test", "gone"); !apierrors.IsNotFound(err) {
		t.Errorf("one that is gone gives %v", err)
	}
}
