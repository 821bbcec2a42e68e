package mesh

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os/signal"
	"syscall"
	"time"
)

// RunApp is the lab's own app: it answers 200 after its service time, to so many requests at once
// and no more; the others wait in line. So its latency depends on how many replicas share the load.
// It runs until SIGTERM, on which it finishes what it is doing.
func RunApp(args []string) error {
	flags := flag.NewFlagSet("app", flag.ContinueOnError)
	listen := flags.String("listen", "", "address to listen on, host:port")
	concurrency := flags.Int("concurrency", 0, "requests worked on at a time (0: no limit)")
	serviceTime := flags.Duration("service-time", 5*time.Millisecond, "how long each request takes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	server := &http.Server{Addr: *listen, Handler: limited(*concurrency, func() { time.Sleep(*serviceTime) })}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return fmt.Errorf("app: %w", err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// limited answers 200 after work, for so many requests at once (0: no limit); the others wait their
// turn.
func limited(concurrency int, work func()) http.Handler {
	var slots chan struct{}
	if concurrency > 0 {
		slots = make(chan struct{}, concurrency)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if slots != nil {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-r.Context().Done():
				return
			}
		}
		work()
		w.WriteHeader(http.StatusOK)
	})
}
