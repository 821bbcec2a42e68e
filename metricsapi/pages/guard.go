package pages

import (
	"crypto/subtle"
	"net"
	"net/http"
	"strings"
)

// policy lets a page load what is served here, and nothing else: no outside request, no script or
// style of others, no frame around it.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// ServeHTTP lets in who knows the token, and reads only. The token is a part of the path, since a
// cookie would be sent to whatever else listens on another port of this machine.
func (p *Pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("Cache-Control", "no-store")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	if !p.named(r.Host) {
		http.Error(w, "This is served as "+p.config.Address+" only.", http.StatusMisdirectedRequest)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "Pages are read only.", http.StatusMethodNotAllowed)
		return
	}
	token, rest, found := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if !found || subtle.ConstantTimeCompare([]byte(token), []byte(p.token)) != 1 {
		http.Error(w, "Open the whole address that meshpulse console has printed.", http.StatusForbidden)
		return
	}
	within := r.Clone(r.Context())
	within.URL.Path, within.URL.RawPath = "/"+rest, strings.TrimPrefix(r.URL.RawPath, "/"+token)
	p.mux.ServeHTTP(w, within)
}

// named says whether a request is to the address that is served, by its numbers or as localhost.
func (p *Pages) named(host string) bool {
	_, port, err := net.SplitHostPort(p.config.Address)
	return host == p.config.Address || err == nil && host == "localhost:"+port
}
