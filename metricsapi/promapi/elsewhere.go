package promapi

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"
)

// Several replicas: a query that is not known in full here is answered as another one does that
// knows more. Listings and /federate are of whoever is asked.

// Paths of what is asked for elsewhere.
const (
	pathQuery = "/api/v1/query"
	pathRange = "/api/v1/query_range"
)

// unknown says why what is here is not all that another replica may know.
func (a *promAPI) unknown(r *http.Request, expr string, at time.Time) string {
	if a.Incomplete == nil || a.Partial != nil && a.Partial() != "" {
		return ""
	}
	return a.Incomplete(r.Context(), expr, at)
}

// elsewhere takes what another replica answers where that counts.
func (a *promAPI) elsewhere(path string, do func(*http.Request) response) func(*http.Request) response {
	return func(r *http.Request) response {
		own := do(r)
		if own.incomplete == "" || a.Elsewhere == nil {
			return own
		}
		e := own.encoded()
		other := a.Elsewhere(r.Context(), path, r.Form, Answer{e.code, e.text, e.incomplete})
		return response{code: other.Code, contentType: e.contentType, text: other.Text}
	}
}

// here answers a query from what is here.
func (a *promAPI) here(ctx context.Context, path string, form url.Values) Answer {
	do := map[string]func(*http.Request) response{pathQuery: a.query, pathRange: a.queryRange}[path]
	if do == nil {
		do = func(*http.Request) response {
			return errorResponse(errorBadData, errors.New("not asked for elsewhere: "+path))
		}
	}
	if form == nil {
		form = url.Values{}
	}
	r := (&http.Request{Method: http.MethodGet, URL: &url.URL{Path: path}, Form: form}).WithContext(ctx)
	e := a.admitted(do)(r).encoded()
	return Answer{e.code, e.text, e.incomplete}
}
