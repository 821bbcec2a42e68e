package promapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/prometheus/prometheus/promql"
)

// response is what a path answers: text of its own type, or data or an error in Prometheus' form.
type response struct {
	Status    string   `json:"status"`
	Data      any      `json:"data,omitempty"`
	ErrorType string   `json:"errorType,omitempty"`
	Error     string   `json:"error,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
	Infos     []string `json:"infos,omitempty"`

	code        int
	contentType string // of text
	text        []byte
	incomplete  string // why it is not all that could be known, "" if it is or nobody else may know
}

// errorType is Prometheus' name of a kind of error, with the status that clients expect of it.
type errorType struct {
	name string
	code int
}

// As in Prometheus' web/api/v1; client_golang takes 400, 422 and 503 alone for answers.
var (
	errorBadData      = errorType{"bad_data", http.StatusBadRequest}
	errorExec         = errorType{"execution", http.StatusUnprocessableEntity}
	errorTimeout      = errorType{"timeout", http.StatusServiceUnavailable}
	errorCanceled     = errorType{"canceled", http.StatusServiceUnavailable}
	errorUnavailable  = errorType{"unavailable", http.StatusServiceUnavailable}
	errorInternal     = errorType{"internal", http.StatusInternalServerError}
	errorUnauthorized = errorType{"unauthorized", http.StatusUnauthorized}
)

func dataResponse(data any, warnings ...string) response {
	return response{Status: "success", Data: data, Warnings: warnings, code: http.StatusOK}
}

func textResponse(contentType string, text []byte) response {
	return response{code: http.StatusOK, contentType: contentType, text: text}
}

func errorResponse(t errorType, err error) response {
	return response{Status: "error", ErrorType: t.name, Error: err.Error(), code: t.code}
}

// failed is the response to an error of a query that runs.
func failed(err error) response {
	canceled, timeout, stored := promql.ErrQueryCanceled(""), promql.ErrQueryTimeout(""), promql.ErrStorage{}
	switch {
	case errors.As(err, &timeout), errors.Is(err, context.DeadlineExceeded):
		return errorResponse(errorTimeout, err)
	case errors.As(err, &canceled), errors.Is(err, context.Canceled):
		return errorResponse(errorCanceled, err)
	case errors.As(err, &stored):
		return errorResponse(errorInternal, err)
	}
	return errorResponse(errorExec, err)
}

// encoded is the response as it is written. Of an answer no more is kept than the text.
func (r response) encoded() response {
	if r.text != nil {
		return r
	}
	text, err := json.Marshal(r)
	if err != nil { // of no type that is answered here
		r = errorResponse(errorInternal, err)
		text, _ = json.Marshal(r)
	}
	return response{code: r.code, contentType: "application/json", text: text, incomplete: r.incomplete}
}

// write sends a response and counts it. A client that has gone is nobody's fault.
func (a *promAPI) write(w http.ResponseWriter, path string, r response) {
	r = r.encoded()
	a.requests.WithLabelValues(path, strconv.Itoa(r.code)).Inc()
	w.Header().Set("Content-Type", r.contentType)
	w.WriteHeader(r.code)
	_, _ = w.Write(r.text)
}
