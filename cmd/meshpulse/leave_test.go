package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A pod waits where it does not come back, and nowhere else.
func TestAReplicaThatDoesNotComeBackWaits(t *testing.T) {
	away := errors.New("the API server is away")
	for name, test := range map[string]struct {
		pod      string
		replicas int32
		err      error
		waits    bool
	}{
		"a rolling update or a drain":        {"meshpulse-1", 2, nil, false},
		"the last of four at 4 -> 3":         {"meshpulse-3", 3, nil, true},
		"one of two that go at 4 -> 2":       {"meshpulse-2", 2, nil, true},
		"the other of them":                  {"meshpulse-3", 2, nil, true},
		"one that stays at 4 -> 2":           {"meshpulse-1", 2, nil, false},
		"all go":                             {"meshpulse-0", 0, nil, true},
		"nobody knows":                       {"meshpulse-3", 0, away, false},
		"its name has hyphens and ends in 1": {"my-mesh-pulse-11", 11, nil, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			l := leaving{name: test.pod, statefulSet: "a/b", wait: 5 * time.Minute}
			l.replicas = func(context.Context, string) (int32, error) { return test.replicas, test.err }
			err := l.run(t.Context())
			if took := time.Since(start); took >= 5*time.Minute != test.waits || !errors.Is(err, test.err) {
				t.Errorf("%s: it takes %s, %v", name, took, err)
			}
		})
	}
}

func TestAReplicaThatIsToldToEndWaitsNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		l := leaving{name: "meshpulse-1", wait: time.Hour, replicas: func(context.Context, string) (int32, error) { return 1, nil }}
		if err := l.run(ctx); err != nil || time.Since(start) > time.Minute {
			t.Errorf("it takes %s, %v", time.Since(start), err)
		}
	})
}

func TestWrongCallsOfLeaveAreTold(t *testing.T) {
	for want, args := range map[string][]string{
		"NAMESPACE/NAME":  {"leave"},
		"flags only":      {"leave", "--statefulset=a/b", "now"},
		"end in a number": {"leave", "--statefulset=a/b", "--replica-name=meshpulse"},
		"--kubeconfig":    {"leave", "--statefulset=a/b", "--replica-name=meshpulse-0", "--kubeconfig=/gone"},
	} {
		if code, _, stderr := call(t.Context(), args...); code == exitOK || !strings.Contains(stderr, want) {
			t.Errorf("%v: code %d, told %s", args, code, stderr)
		}
	}
}
