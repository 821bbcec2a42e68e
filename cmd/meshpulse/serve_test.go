package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// Kubernetes kills what is left; and who runs it by hand waits for it.
func TestTheProcessEndsWithinFiveSecondsWhateverItIsDoing(t *testing.T) {
	failed := errors.New("failed")
	for name, test := range map[string]struct {
		takes time.Duration
		err   error
		ended bool
	}{
		"all has ended in time":    {time.Second, nil, true},
		"a part has failed":        {time.Second, failed, true},
		"a part does not look":     {time.Hour, nil, false},
		"a part that takes longer": {5 * time.Second, failed, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				start := time.Now()
				time.AfterFunc(time.Minute, cancel) // it runs for a while
				err := ended(ctx, ctx, func() error {
					<-ctx.Done()
					time.Sleep(test.takes)
					return test.err
				})
				if took := time.Since(start) - time.Minute; took >= 5*time.Second {
					t.Errorf("it took %s", took)
				}
				if test.ended && !errors.Is(err, test.err) || !test.ended && err == nil {
					t.Errorf("error %v", err)
				}
				time.Sleep(test.takes) // of the bubble's clock: it may end
			})
		})
	}
}

// A pod serves on for a part of them.
func TestAPodEndsWithinFiveSecondsOfTheSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told, cancel := context.WithCancel(t.Context())
		var o serveOptions
		later := o.lingers(told, slog.New(slog.DiscardHandler))
		start := time.Now()
		cancel()
		hang := make(chan struct{})
		err := ended(told, later, func() error { <-hang; return nil })
		close(hang)
		if took := time.Since(start); took <= lingering || took >= 5*time.Second || err == nil {
			t.Errorf("it ends %s after the signal: %v", took, err)
		}
	})
}

// A part that fails ends all others at once, in a pod too.
func TestAFailureEndsTheProcessWithinFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		cancel()
		hang := make(chan struct{})
		err := ended(t.Context(), ctx, func() error { <-hang; return nil })
		close(hang)
		if took := time.Since(start); took >= 5*time.Second || err == nil {
			t.Errorf("it ends %s after the failure: %v", took, err)
		}
	})
}

// A pod that is told to end is asked until the cluster's nodes know it; by hand and in the lab the
// end is at once.
func TestAPodServesOnUntilTheClusterKnows(t *testing.T) {
	for name, test := range map[string]struct {
		standalone bool
		kubeconfig string
		want       time.Duration
	}{
		"in a pod":        {false, "", lingering},
		"by a kubeconfig": {false, "admin.kubeconfig", 0},
		"standalone":      {true, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var o serveOptions
				o.api.Standalone, o.api.Kubeconfig = test.standalone, test.kubeconfig
				told, cancel := context.WithCancel(t.Context())
				start := time.Now()
				ctx := o.lingers(told, slog.New(slog.DiscardHandler))
				time.AfterFunc(time.Minute, cancel)
				<-ctx.Done()
				if took := time.Since(start) - time.Minute; took != test.want {
					t.Errorf("it serves on for %s, want %s", took, test.want)
				}
			})
		})
	}
}
