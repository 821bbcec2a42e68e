package envoystats

import (
	"math"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

// A message is at most one row of the store: Envoy stamps a flush once, whatever it sends of it in
// a message.
func TestEnvoyStampsAMessageOnce(t *testing.T) {
	samples := 0
	for _, file := range captures(t) {
		s, keep := newScan(Config{Keep: []string{""}}), seen{}
		for i, b := range messages(t, file) {
			if err := s.read(b, &keep); err != nil {
				t.Fatalf("%s, message %d: %v", file, i, err)
			}
			for j := range s.batch.Samples {
				samples++
				if got := s.batch.Samples[j].Timestamp; got != s.batch.Timestamp {
					t.Fatalf("%s, message %d: sample %d is of %d, the message of %d", file, i, j, got, s.batch.Timestamp)
				}
			}
		}
	}
	if samples < 5_000 {
		t.Errorf("only %d samples were looked at", samples)
	}
}

// What is refused for its name or labels is refused each time it comes, so it is of no series that
// is known; a bad value may be.
func TestRefusedSamplesThatCanBeOfKnownSeriesAreToldApart(t *testing.T) {
	s := newScan(Config{})
	bad := family("istio_requests_total", dto.MetricType_COUNTER, counter(1000, math.NaN(), "code", "200"))
	long := family("istio_requests_total", dto.MetricType_COUNTER, counter(1000, 5, "code", strings.Repeat("x", 1<<20)))
	if err := s.read(message(t, request(1000, 1), bad, long, long), &seen{}); err != nil {
		t.Fatal(err)
	}
	if s.batch.Refused != 3 || s.batch.RefusedAlways != 2 || len(s.batch.Samples) != 1 {
		t.Errorf("refused %d, of them always %d, and %d samples; want 3, 2 and 1", s.batch.Refused, s.batch.RefusedAlways, len(s.batch.Samples))
	}
}
