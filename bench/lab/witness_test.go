package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// guideOf is an HPA with a target of 10 for each replica.
func guideOf(namespace string) *autoscalingv2.HorizontalPodAutoscaler {
	return &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: "podinfo", Namespace: namespace},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			MinReplicas: new(int32(1)), MaxReplicas: 10,
			Metrics: []autoscalingv2.MetricSpec{{External: &autoscalingv2.ExternalMetricSource{
				Target: autoscalingv2.MetricTarget{AverageValue: new(resource.MustParse("10"))},
			}}},
		},
	}
}

func TestWitnessKeepsWhatBothSayAndChangesNothing(t *testing.T) {
	const vector = `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"1.5"]},{"metric":{},"value":[1,"2"]}]}}`
	said, asked := vector, ""
	status := http.StatusOK
	prometheus := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = fmt.Sprint(r.Method, " ", r.URL, " ", string(body))
		w.WriteHeader(status)
		_, _ = io.WriteString(w, said)
	}))
	defer prometheus.Close()
	none := errors.New("nothing is answered here")
	here := map[string]*float64{"step": new(3.0), "sawtooth": nil}
	w := &witness{to: prometheus.URL, lanes: map[string]*watched{}, here: func(_ context.Context, hpa *autoscalingv2.HorizontalPodAutoscaler) (*float64, int32, error) {
		if hpa.Namespace == "broken" {
			return nil, 0, none
		}
		return here[hpa.Namespace], 2, nil
	}}
	for _, namespace := range []string{"step", "sawtooth", "broken"} {
		if err := w.watch(guideOf(namespace)); err != nil {
			t.Fatal(err)
		}
	}
	front := httptest.NewServer(w)
	defer front.Close()
	ask := func(query string) {
		t.Helper()
		form := url.Values{"query": {query}, "time": {"1700000000.250"}}.Encode()
		answer, err := http.Post(front.URL+"/api/v1/query", "application/x-www-form-urlencoded", strings.NewReader(form))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = answer.Body.Close() }()
		body, _ := io.ReadAll(answer.Body)
		if string(body) != said || answer.StatusCode != status || asked != "POST /api/v1/query "+form {
			t.Errorf("%d %s, asked %s", answer.StatusCode, body, asked)
		}
	}
	ask(`sum(rate(x{namespace="step"}[1m]))`)
	ask(`max(timestamp(x{namespace="step"}))`)
	ask(`x{namespace="nobody"}`)
	ask(`x{namespace="broken"}`)
	said = `{"status":"success","data":{"resultType":"vector","result":[]}}`
	ask(`sum(rate(x{namespace="step"}[1m]))`)
	ask(`x{namespace="sawtooth"}`)
	said, status = `{"status":"error"}`, http.StatusServiceUnavailable
	ask(`sum(rate(x{namespace="step"}[1m]))`) // no comparison
	at := time.UnixMilli(1_700_000_000_250)
	for namespace, want := range map[string][]look{
		"step":     {{at: at, here: new(3.0), there: new(3.5), replicas: 2}, {at: at, here: new(3.0), replicas: 2}},
		"sawtooth": {{at: at, replicas: 2}},
		"broken":   nil,
	} {
		if diff := cmp.Diff(want, w.seen(namespace).looks, cmp.AllowUnexported(look{})); diff != "" {
			t.Errorf("%s: %s", namespace, diff)
		}
	}
	if n := w.seen("broken").unseen; n != 1 {
		t.Errorf("%d could not be seen", n)
	}
}
