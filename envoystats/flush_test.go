package envoystats

import "testing"

// A message is at most one row of the store: Envoy stamps a flush once, whatever it sends of it in a message.
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
