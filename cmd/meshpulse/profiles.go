package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime"
	"sync"
	"time"
)

// serveProfiles serves net/http/pprof, and only that, until the context ends.
func serveProfiles(ctx context.Context, l net.Listener) error {
	server := &http.Server{Handler: profiles(), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("profiling on %s: %w", l.Addr(), err)
	}
	return nil
}

func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	var one sync.Mutex
	waits := func(name string, set func(rate int)) {
		mux.HandleFunc("/debug/pprof/"+name, func(w http.ResponseWriter, r *http.Request) {
			one.Lock()
			defer one.Unlock()
			set(1)
			defer set(0)
			pprof.Handler(name).ServeHTTP(w, r) // with ?seconds=N what comes to pass in these
		})
	}
	// Every wait is recorded while somebody asks for it, and none else: it costs more than most of
	// them.
	waits("mutex", func(rate int) { runtime.SetMutexProfileFraction(rate) })
	waits("block", runtime.SetBlockProfileRate)
	return mux
}
