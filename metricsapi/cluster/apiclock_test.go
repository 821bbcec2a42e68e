package cluster

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func TestClocksAreComparedAtEachAnswerOfTheAPIServer(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	date := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Date"] = []string{date}
		w.WriteHeader(http.StatusForbidden)
	}))
	defer server.Close()
	config, got := &rest.Config{Host: server.URL}, 0.0
	measureClock(config, func(behind float64) { got = behind }, func() time.Time { return now })
	client, err := kubernetes.NewForConfig(paced(config, -1, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		date string
		want float64
	}{
		{now.Add(90 * time.Second).Format(http.TimeFormat), 90.5},
		{"", 90.5}, // as it was
		{now.Format(http.TimeFormat), 0.5},
		{now.Add(-time.Minute).Format(http.TimeFormat), -59.5},
	} {
		date = tc.date
		if _, err := client.CoreV1().Pods("test").List(t.Context(), metav1.ListOptions{}); err == nil {
			t.Fatal("no error")
		}
		if got != tc.want {
			t.Errorf("at a date of %q the clock is behind by %v s, want %v", tc.date, got, tc.want)
		}
	}
}
