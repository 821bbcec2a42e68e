package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/meshpulse/meshpulse/bench/fleet"
	"github.com/meshpulse/meshpulse/bench/nullsink"
	"github.com/meshpulse/meshpulse/bench/standalone"
)

// tellServing tells the parent where to reach this process: the line that it waits for.
func tellServing(at standalone.Serving) error {
	at.Msg = "serving"
	return json.NewEncoder(os.Stdout).Encode(at)
}

const nullSinkName = "sink"

// serveSink is the null sink as a process. It answers GET /stats with the number of messages on a
// second port.
func serveSink(ctx context.Context, args []string) error {
	f := flag.NewFlagSet(nullSinkName, flag.ContinueOnError)
	cert := f.String("tls-cert-file", "", "certificate (PEM); without it plaintext")
	key := f.String("tls-private-key-file", "", "its key")
	if err := f.Parse(args); err != nil {
		return err
	}
	var c *tls.Config
	if *cert != "" {
		pair, err := tls.LoadX509KeyPair(*cert, *key)
		if err != nil {
			return err
		}
		c = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	sink := nullsink.New(c)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]int64{"messages": sink.Messages()}) // who asked is gone
	})
	control, err := serveHTTP(ctx, mux)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, sink.Stop)
	defer stop()
	if err := tellServing(standalone.Serving{Ingest: l.Addr().String(), HTTPS: control}); err != nil {
		return err
	}
	return sink.Serve(l)
}

// serveFleet is a fleet as a process.
func serveFleet(ctx context.Context, args []string) error {
	var c fleet.Config
	f := flag.NewFlagSet("fleet", flag.ContinueOnError)
	f.StringVar(&c.Target, "target", "", "receiver, host:port")
	f.StringVar(&c.CAFile, "ca-file", "", "CA certificates (PEM) of the receiver; without it plaintext")
	f.StringVar(&c.CertFile, "cert-file", "", "certificate (PEM) that all sidecars show")
	f.StringVar(&c.KeyFile, "key-file", "", "its key")
	f.IntVar(&c.Pods, "pods", 0, "sidecars (default 10)")
	f.IntVar(&c.PodsPerWorkload, "pods-per-workload", 0, "sidecars that share their label sets (default 10)")
	f.IntVar(&c.LabelSets, "label-sets", 0, "label sets of a sidecar (default 20)")
	f.IntVar(&c.Busiest, "busiest", 0, "requests a flush of the busiest label set, the others by Zipf's law (default: all move in every flush)")
	f.BoolVar(&c.Labels, "labels", false, "tags as labels; by default they are joined in the name as stock Istio sends them")
	f.DurationVar(&c.Interval, "interval", 0, "flush interval (default 5s)")
	f.IntVar(&c.ReplacedPerMinute, "replaced-per-minute", 0, "pods that are replaced by new ones")
	f.IntVar(&c.RestartedPerMinute, "restarted-per-minute", 0, "Envoys that are killed and come back")
	if err := f.Parse(args); err != nil {
		return err
	}
	fl, err := fleet.New(c)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(fl.Stats()) // the asker has gone
	})
	mux.HandleFunc("POST /reconnect", func(http.ResponseWriter, *http.Request) { fl.Reconnect() })
	mux.HandleFunc("POST /calm", func(http.ResponseWriter, *http.Request) { fl.Calm() })
	control, err := serveHTTP(ctx, mux)
	if err != nil {
		return err
	}
	if err := tellServing(standalone.Serving{HTTPS: control}); err != nil {
		return err
	}
	go tellFleet(ctx, fl)
	fl.Run(ctx)
	return nil
}

// tellFleet says on stderr how a fleet does, every ten seconds until the context ends.
func tellFleet(ctx context.Context, f *fleet.Fleet) {
	for wait(ctx, 10*time.Second) == nil {
		st := f.Stats()
		fmt.Fprintf(os.Stderr, "%d sidecars connected, %d flushes sent, %d failed %s\n", st.Streams, st.Flushes, st.Failed, st.LastError)
	}
}

// serveHTTP serves on a free port of this machine until the context ends, and returns host:port.
func serveHTTP(ctx context.Context, h http.Handler) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "report:", err)
		}
	}()
	return l.Addr().String(), nil
}
