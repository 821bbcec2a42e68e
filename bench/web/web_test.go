package web

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAnAnswerOtherThan200IsAnErrorThatTellsIt(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			http.Error(w, "no such thing", http.StatusNotFound)
			return
		}
		_, _ = fmt.Fprint(w, r.Method)
	}))
	t.Cleanup(s.Close)
	client := Insecure()
	t.Cleanup(client.CloseIdleConnections)
	if body, err := Get(t.Context(), client, s.URL); string(body) != "GET" || err != nil {
		t.Errorf("got %q, %v", body, err)
	}
	if body, err := Do(t.Context(), client, http.MethodPost, s.URL); string(body) != "POST" || err != nil {
		t.Errorf("got %q, %v", body, err)
	}
	_, err := Get(t.Context(), client, s.URL+"/bad")
	if err == nil || !strings.Contains(err.Error(), "404 Not Found: no such thing") || !strings.Contains(err.Error(), s.URL+"/bad") {
		t.Errorf("an answer 404: %v", err)
	}
	if _, err := Get(t.Context(), http.DefaultClient, s.URL); err == nil {
		t.Error("a client that trusts not everybody has got an answer")
	}
}
