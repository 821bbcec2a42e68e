package fallback

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"
	"k8s.io/client-go/util/cert"
)

// other is the other adapter, behind its Service.
type other struct {
	*httptest.Server
	ca []byte

	mu    sync.Mutex
	asked []*http.Request
}

const otherName = "keda-metrics.keda.svc"

// startOther serves with a certificate for a name.
func startOther(t *testing.T, name string, answer http.HandlerFunc) *other {
	t.Helper()
	certificate, key, err := cert.GenerateSelfSignedCertKey(name, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	o := &other{ca: certificate}
	o.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		o.asked = append(o.asked, r)
		o.mu.Unlock()
		answer(w, r)
	}))
	o.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	o.EnableHTTP2 = true
	o.StartTLS()
	t.Cleanup(o.Close)
	return o
}

func (o *other) requests() []*http.Request {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.asked)
}

// tokenSource gives token-1, token-2, …, each for an hour, or an error.
type tokenSource struct {
	mu   sync.Mutex
	n    int
	fail error
}

func (s *tokenSource) Token() (*oauth2.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	s.n++
	return &oauth2.Token{AccessToken: fmt.Sprintf("token-%d", s.n), Expiry: time.Now().Add(time.Hour)}, nil
}

// newAdapter is one that reaches the other adapter whatever its name is, and passes on what it is
// asked as user.
func newAdapter(t *testing.T, o *other, tokens oauth2.TokenSource) (a *Adapter, front *httptest.Server) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, o.ca, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{
		Address: Address{"keda", "keda-metrics", 443}, CAFile: file, Tokens: tokens,
		Fail: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != otherName+":443" {
				return nil, errors.New("dials " + address)
			}
			return new(net.Dialer).DialContext(ctx, network, o.Listener.Addr().String())
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = a.Pass(w, r, r.Header.Get("X-Remote-User"))
	}))
	t.Cleanup(front.Close)
	return a, front
}

func get(t *testing.T, url string, header http.Header) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = header
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

// What the caller says of itself stays here: the other adapter is told who asks by the account's
// token alone. Path, query, status and body are passed as they are.
func TestPassedAsItIs(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write([]byte("a body that is packed"))
	_ = z.Close()
	o := startOther(t, otherName, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write(packed.Bytes())
	})
	_, front := newAdapter(t, o, &tokenSource{})
	const path = "/apis/external.metrics.k8s.io/v1beta1/namespaces/a/s0-x%7Cy?labelSelector=scaledobject.keda.sh%2Fname%3Da&limit=5"
	answer, body := get(t, front.URL+path, http.Header{
		"Accept": {"application/json;q=0.5", "*/*"}, "Accept-Encoding": {"gzip"}, "User-Agent": {"kube-controller-manager"},
		"Authorization": {"Bearer the-caller's"}, "Cookie": {"a=b"}, "X-Forwarded-For": {"1.2.3.4"}, "Forwarded": {"for=1.2.3.4"},
		"X-Remote-User": {"system:admin"}, "X-Remote-Group": {"system:masters"}, "X-Remote-Extra-Scopes": {"all"}, "X-Remote-Uid": {"1"},
		"Impersonate-User": {"root"}, "Impersonate-Group": {"system:masters"}, "Impersonate-Extra-X": {"y"},
		"Connection": {"keep-alive, X-Own"}, "X-Own": {"1"}, "Upgrade": {"websocket"}, "Te": {"trailers"}, "Proxy-Authorization": {"Basic x"},
	})
	if answer.StatusCode != http.StatusTeapot || body != packed.String() {
		t.Errorf("status %d, body %q: want what the other adapter said", answer.StatusCode, body)
	}
	asked := o.requests()
	if len(asked) != 1 {
		t.Fatalf("%d requests arrived, want 1", len(asked))
	}
	want := http.Header{
		"Accept": {"application/json;q=0.5", "*/*"}, "Accept-Encoding": {"gzip"}, "User-Agent": {"kube-controller-manager"},
		"Authorization": {"Bearer token-1"}, "Via": {"1.1 meshpulse"},
	}
	if diff := cmp.Diff(want, asked[0].Header); diff != "" {
		t.Errorf("headers that arrive (-want +got):\n%s", diff)
	}
	if got := asked[0].URL.RequestURI(); got != path || asked[0].Host != otherName {
		t.Errorf("asked %s at %s, want %s at %s", got, asked[0].Host, path, otherName)
	}
	if !Circles(asked[0]) || Circles(&http.Request{Header: http.Header{"Via": {"1.1 varnish"}}}) {
		t.Error("what was passed on is not told from what was not")
	}
}

// A token that the other adapter refuses is not used for long: one that was got for the very
// question is tried once more.
func TestARefusedTokenIsReplaced(t *testing.T) {
	o := startOther(t, otherName, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer token-2" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	_, front := newAdapter(t, o, &tokenSource{})
	for i, want := range []int{http.StatusUnauthorized, http.StatusUnauthorized, http.StatusOK, http.StatusOK} {
		if answer, _ := get(t, front.URL+"/x", nil); answer.StatusCode != want {
			t.Errorf("answer %d has status %d, want %d", i, answer.StatusCode, want)
		}
	}
}

func TestNoAnswer(t *testing.T) {
	ok := func(http.ResponseWriter, *http.Request) {}
	cases := map[string]struct {
		name   string
		answer http.HandlerFunc
		tokens error
		spoil  func(*other, *Adapter)
		want   string
		calls  int
	}{
		"its certificate is for another name": {name: "somebody.else.svc", answer: ok, want: "certificate is valid for somebody.else.svc, not " + otherName},
		"its certificate is another authority's": {name: otherName, answer: ok, want: "unknown authority", spoil: func(_ *other, a *Adapter) {
			a.bundle, a.transport = nil, nil
			stranger, _, err := cert.GenerateSelfSignedCertKey(otherName, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(a.config.CAFile, stranger, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := a.ca.RunOnce(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		"no token":           {name: otherName, answer: ok, tokens: errors.New("no token of service account a/b: forbidden"), want: "no token of service account a/b: forbidden"},
		"it is down":         {name: otherName, answer: ok, want: "refused", spoil: func(o *other, _ *Adapter) { o.Close() }},
		"it does not answer": {name: otherName, answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, want: "no answer within 3s", spoil: func(_ *other, a *Adapter) { a.deadline = time.Millisecond }},
		"it leads elsewhere": {name: otherName, answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://evil.example/", http.StatusFound)
		}, want: `redirection to "https://evil.example/"`, calls: 1},
		"it hangs up": {name: otherName, answer: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, want: "", calls: 1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			o := startOther(t, c.name, c.answer)
			a, front := newAdapter(t, o, &tokenSource{fail: c.tokens})
			if c.spoil != nil {
				c.spoil(o, a)
			}
			answer, body := get(t, front.URL+"/x", nil)
			if answer.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, c.want) {
				t.Errorf("status %d, %q: want 503 and %q", answer.StatusCode, body, c.want)
			}
			if n := len(o.requests()); c.calls > 0 && n != c.calls {
				t.Errorf("%d calls, want %d", n, c.calls)
			}
		})
	}
}

// A new authority counts once it is in the file.
func TestTheAuthorityIsReadAgain(t *testing.T) {
	o := startOther(t, otherName, func(http.ResponseWriter, *http.Request) {})
	a, front := newAdapter(t, o, &tokenSource{})
	stranger, _, err := cert.GenerateSelfSignedCertKey(otherName, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		ca   []byte
		want int
	}{{o.ca, http.StatusOK}, {stranger, http.StatusServiceUnavailable}, {slices.Concat(stranger, o.ca), http.StatusOK}} {
		if err := os.WriteFile(a.config.CAFile, step.ca, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := a.ca.RunOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
		if answer, body := get(t, front.URL+"/x", nil); answer.StatusCode != step.want {
			t.Errorf("status %d, want %d: %s", answer.StatusCode, step.want, body)
		}
	}
}

// So many are asked at once and no more, of one user fewer; who comes later waits.
func TestSoManyAtOnce(t *testing.T) {
	let := make(chan struct{})
	inside, most := 0, 0
	var mu sync.Mutex
	arrived := make(chan struct{}, 100)
	o := startOther(t, otherName, func(http.ResponseWriter, *http.Request) {
		mu.Lock()
		inside++
		most = max(most, inside)
		mu.Unlock()
		arrived <- struct{}{}
		<-let
		mu.Lock()
		inside--
		mu.Unlock()
	})
	a, front := newAdapter(t, o, &tokenSource{})
	a.deadline = time.Hour
	var all sync.WaitGroup
	ask := func(user string, n int) {
		for range n {
			all.Go(func() {
				if answer, body := get(t, front.URL+"/x", http.Header{"X-Remote-User": {user}}); answer.StatusCode != http.StatusOK {
					t.Errorf("status %d: %s", answer.StatusCode, body)
				}
			})
		}
	}
	ask("greedy", 20)
	for range callsOfOne {
		<-arrived
	}
	ask("other", 20)
	for range calls - callsOfOne {
		<-arrived
	}
	ask("third", 1)
	close(let)
	all.Wait()
	if most != calls {
		t.Errorf("%d at once, want %d", most, calls)
	}
	if len(a.turns.users) != 0 {
		t.Errorf("%d users are remembered", len(a.turns.users))
	}
}

// One user has so many at once, though there is room for more.
func TestSoManyOfOneUser(t *testing.T) {
	turns := newTurns(calls, callsOfOne)
	for range callsOfOne {
		if _, err := turns.enter(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := turns.enter(ended, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("one more than it may: %v", err)
	}
	leave, err := turns.enter(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	leave()
}

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]Address{
		"keda/keda-operator-metrics-apiserver":  {"keda", "keda-operator-metrics-apiserver", 443},
		"kube-system/kube-metrics-adapter:6443": {"kube-system", "kube-metrics-adapter", 6443},
	} {
		if got, err := ParseAddress(text); err != nil || got != want {
			t.Errorf("%s is %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "keda", "/x", "keda/", "keda/x:", "keda/x:0", "keda/x:70000", "keda/x:a", "keda/x/y", "keda/x.y", "Keda/x", "https://keda/x", "keda/x:1:2", "ke da/x", "keda/1x"} {
		if got, err := ParseAddress(text); err == nil || !strings.Contains(err.Error(), "NAMESPACE/SERVICE[:PORT]") {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
	}
}
