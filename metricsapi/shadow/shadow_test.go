package shadow

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql/parser"
)

func TestValueIsTheSumOfTheSeries(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_250)
	tests := map[string]struct {
		body    string
		status  int
		want    float64
		noValue bool
		fails   string
	}{
		"a vector":        {body: `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"1.5"]},{"value":[1,"2"]}]}}`, want: 3.5},
		"a scalar":        {body: `{"status":"success","data":{"resultType":"scalar","result":[1,"7"]}}`, want: 7},
		"nothing":         {body: `{"status":"success","data":{"resultType":"vector","result":[]}}`, noValue: true},
		"no number":       {body: `{"status":"success","data":{"resultType":"scalar","result":[1,"NaN"]}}`, noValue: true},
		"a text":          {body: `{"status":"success","data":{"resultType":"string","result":[1,"x"]}}`, fails: `type "string"`},
		"an error":        {status: 422, body: `{"status":"error","error":"it is too much"}`, fails: "it is too much"},
		"no Prometheus":   {status: 404, body: `<html>`, fails: "404"},
		"half a point":    {body: `{"status":"success","data":{"resultType":"vector","result":[{"value":[1]}]}}`, fails: "not a time and a value"},
		"a value of text": {body: `{"status":"success","data":{"resultType":"vector","result":[{"value":[1,2]}]}}`, fails: "not a number"},
		"without end":     {body: strings.Repeat(" ", mostBody+1), fails: "more than"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPost || r.URL.Path != "/prom/api/v1/query" || r.FormValue("query") != "sum(x)" || r.FormValue("time") != "1700000000.250" {
					t.Errorf("asked %s %s %v", r.Method, r.URL, r.Form)
				}
				w.WriteHeader(max(test.status, http.StatusOK))
				_, _ = w.Write([]byte(test.body))
			}))
			defer s.Close()
			p, err := NewPrometheus(PrometheusConfig{URL: s.URL + "/prom/"})
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.Value(t.Context(), "sum(x)", at)
			switch {
			case test.noValue != errors.Is(err, ErrNoValue):
				t.Errorf("error %v", err)
			case test.fails != "" && (err == nil || !strings.Contains(err.Error(), test.fails)):
				t.Errorf("error %v, want %s", err, test.fails)
			case test.fails == "" && !test.noValue && (err != nil || got != test.want):
				t.Errorf("%v, %v, want %v", got, err, test.want)
			}
		})
	}
}

func TestOnlyAPlainURLIsTaken(t *testing.T) {
	for _, bad := range []string{"", "prometheus:9090", "ftp://x", "http://", "http://u:secret@x", "http://x?a=b", "http://x#y"} {
		if _, err := NewPrometheus(PrometheusConfig{URL: bad}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: error %v", bad, err)
		}
	}
}

// A token is shown to whom the authority vouches for, and both are what their files have now.
func TestThePrometheusIsShownATokenOverTLS(t *testing.T) {
	var shown atomic.Value // of string
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown.Store(r.Header.Get("Authorization"))
		_, _ = w.Write([]byte(`{"status":"success","data":{"resultType":"scalar","result":[1,"7"]}}`))
	})
	s := httptest.NewUnstartedServer(answer)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of a handshake that fails
	s.StartTLS()
	defer s.Close()
	folder := t.TempDir()
	write := func(name string, text []byte) string {
		file := filepath.Join(folder, name)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	c := PrometheusConfig{URL: s.URL, CAFile: write("ca.crt", authority), TokenFile: write("token", []byte("first\n"))}
	p, err := NewPrometheus(c)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(fails string) {
		t.Helper()
		shown.Store("")
		if _, err := p.Value(t.Context(), "x", time.Unix(1, 0)); (err == nil) != (fails == "") || err != nil && !strings.Contains(err.Error(), fails) {
			t.Errorf("error %v, want %q", err, fails)
		}
	}
	if ask(""); shown.Load() != "Bearer first" {
		t.Errorf("shown is %q", shown.Load())
	}
	write("token", []byte("second"))
	if ask(""); shown.Load() != "Bearer second" {
		t.Errorf("shown is %q", shown.Load())
	}
	write("token", []byte("two\nlines"))
	if ask("has no token"); shown.Load() != "" {
		t.Errorf("shown is %q", shown.Load())
	}
	write("token", []byte("third"))
	write("ca.crt", anotherAuthority(t))
	if ask("unknown authority"); shown.Load() != "" {
		t.Errorf("one whom nobody vouches for is shown %q", shown.Load())
	}
	write("ca.crt", nil)
	ask("no authority in PEM")
	write("ca.crt", authority)
	if ask(""); shown.Load() != "Bearer third" {
		t.Errorf("shown is %q", shown.Load())
	}
	c.CAFile = ""
	if p, err = NewPrometheus(c); err != nil {
		t.Fatal(err)
	}
	ask("unknown authority")
}

// anotherAuthority has signed nothing.
func anotherAuthority(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, of, of, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestATokenIsNotShownToWhoeverIsOnTheWay(t *testing.T) {
	for url, want := range map[string]string{
		"http://prometheus:9090": "give an https URL", "http://10.0.0.1": "give an https URL", "http://localhost.evil:1": "give an https URL",
		"http://127.0.0.1:9090": "", "http://[::1]:9090": "", "http://localhost:9090": "", "https://prometheus": "",
	} {
		err := PrometheusConfig{URL: url, TokenFile: "token"}.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
	if err := (PrometheusConfig{URL: "http://127.0.0.1", CAFile: "ca.crt"}).Validate(); err == nil || !strings.Contains(err.Error(), "give an https URL") {
		t.Errorf("an authority over http: %v", err)
	}
	for _, c := range []PrometheusConfig{{URL: "https://x", TokenFile: "/no/such/file"}, {URL: "https://x", CAFile: "/no/such/file"}} {
		if _, err := NewPrometheus(c); err == nil || !strings.Contains(err.Error(), "/no/such/file") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestARedirectionIsNotFollowed(t *testing.T) {
	s := httptest.NewServer(http.RedirectHandler("http://192.0.2.1/", http.StatusTemporaryRedirect))
	defer s.Close()
	p, err := NewPrometheus(PrometheusConfig{URL: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Value(t.Context(), "x", time.Unix(1, 0)); err == nil || !strings.Contains(err.Error(), "redirection") {
		t.Errorf("error %v", err)
	}
}

func TestTheAgeIsThatOfTheNewestSample(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_250)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got, want := r.FormValue("query"), `max(timestamp(istio_requests_total{a="b"}))`; got != want {
			t.Errorf("asked %s, want %s", got, want)
		}
		_, _ = w.Write([]byte(`{"status":"success","data":{"resultType":"scalar","result":[1,"1699999990.25"]}}`))
	}))
	defer s.Close()
	p, err := NewPrometheus(PrometheusConfig{URL: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	of, err := parser.ParseExpr(`istio_requests_total{a="b"} offset 5m`)
	if err != nil {
		t.Fatal(err)
	}
	if age, err := p.Age(t.Context(), of.(*parser.VectorSelector), at); err != nil || age != 10*time.Second {
		t.Errorf("%v, %v", age, err)
	}
}

func comparison(second int64, ours, theirs float64, ourAsk, theirAsk int32) Comparison {
	return Comparison{At: time.Unix(second, 0), Ours: &ours, Theirs: &theirs, OursAsks: ourAsk, TheirsAsks: theirAsk}
}

func TestSummaryTellsAgreementAndTheLargestDifference(t *testing.T) {
	var r Records[string]
	r.Add("a", comparison(1, 10, 9.5, 1, 1))
	r.Add("a", comparison(2, 10, 4, 3, 1))
	r.Add("a", comparison(3, 10, 8, 3, 2))
	r.Add("a", comparison(4, 0, 0, 1, 1))
	one := 1.0
	r.Add("a", Comparison{At: time.Unix(5, 0), Ours: &one})
	r.Add("a", Comparison{At: time.Unix(6, 0), Theirs: &one})
	s, ok := r.Summary("a")
	got := fmt.Sprint(ok, s.Compared, s.Agreed, s.Decisions, s.TheirsMissing, s.OursMissing, s.Largest.At.Unix(), s.Newest.At.Unix())
	if want := "true 4 2 2 1 1 2 6"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestRecordsAreBounded(t *testing.T) {
	var r Records[int]
	for i := range int64(3 * kept) {
		r.Add(1, comparison(i, 1, 1, 1, 1))
	}
	if s, _ := r.Summary(1); s.Compared != kept || s.Newest.At.Unix() != 3*kept-1 {
		t.Errorf("%d are remembered, the newest of %v", s.Compared, s.Newest.At)
	}
	r.Keep(func(int) bool { return false })
	if _, ok := r.Summary(1); ok {
		t.Error("an HPA that is gone is remembered")
	}
}
