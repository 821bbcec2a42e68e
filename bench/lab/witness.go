package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// witness stands between meshpulse and the Prometheus that it compares with, and keeps of each
// comparison what either says: what goes through it, and what is answered here at that moment.
type witness struct {
	// to is the Prometheus.
	to string
	// here is what the external metrics API answers for an HPA, nil where it has no value, and how
	// many replicas the HPA has.
	here func(context.Context, *autoscalingv2.HorizontalPodAutoscaler) (value *float64, replicas int32, err error)

	mu    sync.Mutex
	lanes map[string]*watched // by namespace
}

// watched is what was seen of a lane.
type watched struct {
	hpa   *autoscalingv2.HorizontalPodAutoscaler
	goal  goal
	looks []look
	// unseen are questions of which the lab could not tell what was answered here.
	unseen int
}

// watch keeps from now on what is asked for the HPA's metric.
func (w *witness) watch(hpa *autoscalingv2.HorizontalPodAutoscaler) error {
	g, err := goalOf(hpa)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lanes[hpa.Namespace] = &watched{hpa: hpa, goal: g}
	return nil
}

// of is the lane whose metric a query is: it names the lane's namespace. One for a sample's age is
// nobody's.
func (w *witness) of(query string) *watched {
	if strings.HasPrefix(query, "max(timestamp(") {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for namespace, l := range w.lanes {
		if strings.Contains(query, strconv.Quote(namespace)) {
			return l
		}
	}
	return nil
}

// seen is what was kept of a lane so far.
func (w *witness) seen(namespace string) watched {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.lanes[namespace]; l != nil {
		return *l
	}
	return watched{}
}

// ServeHTTP looks here first, so that as little as can be comes between meshpulse's own look and
// the lab's.
func (w *witness) ServeHTTP(to http.ResponseWriter, r *http.Request) {
	question, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(to, err.Error(), http.StatusBadRequest)
		return
	}
	form, err := url.ParseQuery(string(question))
	if err != nil {
		http.Error(to, err.Error(), http.StatusBadRequest)
		return
	}
	lane := w.of(form.Get("query"))
	var one look
	var unseen error
	if lane != nil {
		one.here, one.replicas, unseen = w.here(r.Context(), lane.hpa)
	}
	status, said, err := w.forward(r, question)
	if err != nil {
		http.Error(to, err.Error(), http.StatusBadGateway)
		return
	}
	if lane != nil && status == http.StatusOK {
		if unseen == nil {
			one.at, one.there, unseen = readLook(form.Get("time"), said)
		}
		w.keep(lane, one, unseen)
	}
	to.Header().Set("Content-Type", "application/json")
	to.WriteHeader(status)
	_, _ = to.Write(said) // who asked may have gone
}

func (w *witness) keep(lane *watched, one look, unseen error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if unseen != nil {
		slog.Warn("a comparison that the lab could not see", "namespace", lane.hpa.Namespace, "err", unseen)
		lane.unseen++
		return
	}
	lane.looks = append(lane.looks, one)
}

func (w *witness) forward(r *http.Request, question []byte) (status int, said []byte, err error) {
	out, err := http.NewRequestWithContext(r.Context(), r.Method, w.to+r.URL.RequestURI(), bytes.NewReader(question))
	if err != nil {
		return 0, nil, err
	}
	out.Header = r.Header.Clone()
	out.Header.Del("Accept-Encoding") // what is kept is read
	answer, err := http.DefaultClient.Do(out)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	said, err = io.ReadAll(answer.Body)
	return answer.StatusCode, said, err
}

// readLook reads the instant of a question, in seconds, and what the Prometheus has said: the sum
// of its series, nil without any.
func readLook(at string, said []byte) (time.Time, *float64, error) {
	var answer struct {
		Data struct {
			ResultType string
			Result     []struct{ Value [2]any }
		}
	}
	seconds, err := strconv.ParseFloat(at, 64)
	if err = errors.Join(err, json.Unmarshal(said, &answer)); err != nil {
		return time.Time{}, nil, err
	}
	if answer.Data.ResultType != "vector" {
		return time.Time{}, nil, errors.New("the Prometheus answers with no vector")
	}
	instant := time.UnixMilli(int64(seconds*1000 + 0.5))
	var sum *float64
	for _, series := range answer.Data.Result {
		text, _ := series.Value[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return time.Time{}, nil, err
		}
		if sum == nil {
			sum = new(float64)
		}
		*sum += v
	}
	return instant, sum, nil
}
