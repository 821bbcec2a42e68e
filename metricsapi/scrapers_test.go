package metricsapi

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// scraped is a server's door, with the library's own delegation to an API server and no cache.
type scraped struct {
	t     *testing.T
	door  func(path, token string) int
	now   time.Time
	knows *scrapers
}

func newScraped(t *testing.T, api *fakeAPI) *scraped {
	t.Helper()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: api.URL, TLSClientConfig: rest.TLSClientConfig{CAData: api.ca()}})
	if err != nil {
		t.Fatal(err)
	}
	once := &wait.Backoff{Steps: 1}
	authn, _, err := authenticatorfactory.DelegatingAuthenticatorConfig{
		Anonymous: &apiserver.AnonymousAuthConfig{Enabled: true}, TokenAccessReviewClient: client.AuthenticationV1(), WebhookRetryBackoff: once,
	}.New()
	if err != nil {
		t.Fatal(err)
	}
	authz, err := authorizerfactory.DelegatingAuthorizerConfig{SubjectAccessReviewClient: client.AuthorizationV1(), WebhookRetryBackoff: once}.New()
	if err != nil {
		t.Fatal(err)
	}
	s := &scraped{t: t, now: time.Unix(1_000_000, 0)}
	s.knows = newScrapers(func() time.Time { return s.now })
	who, may := s.knows.authenticator(authn), s.knows.authorizer(authz)
	s.door = func(path, token string) int {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		is, ok, err := who.AuthenticateRequest(r)
		if err != nil || !ok {
			return http.StatusUnauthorized
		}
		decision, _, err := may.Authorize(t.Context(), authorizer.AttributesRecord{User: is.User, Verb: "get", Path: path})
		switch {
		case decision == authorizer.DecisionAllow:
			return http.StatusOK
		case err != nil:
			return http.StatusInternalServerError
		}
		return http.StatusForbidden
	}
	return s
}

func (s *scraped) expect(path, token string, want int) {
	s.t.Helper()
	if got := s.door(path, token); got != want {
		s.t.Errorf("%s with token %q: %d, want %d", path, token, got, want)
	}
}

// A Prometheus that has scraped goes on while the API server is away, which its alerts tell of; it
// and everybody else get nothing more by that.
func TestWhoScrapesGoesOnWhileTheAPIServerIsAway(t *testing.T) {
	api := newFakeAPI(t)
	s := newScraped(t, api)
	for range 2 { // a scrape, and the next one
		s.expect("/metrics", "hpa", http.StatusOK)
		s.expect("/metrics", "stranger", http.StatusForbidden)
		s.expect("/debug/hpas", "hpa", http.StatusOK)
	}
	api.away.Store(true)
	s.now = s.now.Add(59 * time.Minute)
	s.expect("/metrics", "hpa", http.StatusOK)
	s.expect("/metrics", "stranger", http.StatusUnauthorized)
	s.expect("/metrics", "tenant", http.StatusUnauthorized) // was never there
	s.expect("/debug/hpas", "hpa", http.StatusUnauthorized)
	s.now = s.now.Add(time.Minute)
	s.expect("/metrics", "hpa", http.StatusUnauthorized)
	api.away.Store(false)
	s.expect("/metrics", "hpa", http.StatusOK)
}

// What the API server says counts, whatever it said before.
func TestAScraperThatIsRefusedIsForgotten(t *testing.T) {
	for _, what := range []string{"the token", "the right"} {
		api := newFakeAPI(t)
		s := newScraped(t, api)
		for range 2 {
			s.expect("/metrics", "hpa", http.StatusOK)
		}
		want := http.StatusUnauthorized
		if what == "the right" {
			want = http.StatusForbidden
		}
		refuse := map[string]string{"the token": "tokenreviews", "the right": "subjectaccessreviews"}[what]
		api.refuses.Store(&refuse)
		s.expect("/metrics", "hpa", want)
		api.away.Store(true)
		if got := s.door("/metrics", "hpa"); got == http.StatusOK {
			t.Errorf("%s was taken away, and the API server then: let in", what)
		}
	}
}

// Whoever may not read /metrics takes no memory, and however many may, no more than there is room
// for.
func TestScrapersTakeABoundedMemory(t *testing.T) {
	api := newFakeAPI(t)
	s := newScraped(t, api)
	for range 3 {
		s.expect("/metrics", "stranger", http.StatusForbidden)
	}
	if n := len(s.knows.known) + len(s.knows.allowed); n > 0 {
		t.Errorf("%d are kept of who was refused", n)
	}
	for i := range maxScrapers + 1 {
		s.knows.decided(fmt.Sprint("user-", i), true)
	}
	if n := len(s.knows.allowed); n != maxScrapers {
		t.Errorf("%d users are kept, want %d", n, maxScrapers)
	}
	s.now = s.now.Add(2 * scraperKnownFor)
	s.knows.decided("another", true)
	if n := len(s.knows.allowed); n != 1 {
		t.Errorf("%d users are kept once the others' time is over, want 1", n)
	}
}
