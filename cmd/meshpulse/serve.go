package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats"
	"github.com/meshpulse/meshpulse/envoystats/relay"
	"github.com/meshpulse/meshpulse/metricsapi"
	"github.com/meshpulse/meshpulse/metricsapi/promapi"
)

const (
	// shutdownLimit bounds how long streams may take to end; answers in flight get as long
	// (metricsapi).
	shutdownLimit = 4 * time.Second
	// relayLimit bounds how long what sidecars have sent may take to other replicas: with a second
	// for the streams it is within what a pod is left after lingering.
	relayLimit = 500 * time.Millisecond
	// exitLimit is how long after the signal the process ends whatever it is doing: within 5 s, as
	// is promised.
	exitLimit = 4500 * time.Millisecond
	// lingering is how much of that a pod serves on for: kube-proxy takes its address out of the
	// Services once a second at most, after the endpoints' controller has. Without it one question
	// in a rolling update went to a port that was closed (bench/lab/node).
	lingering = 2500 * time.Millisecond
)

// serve parses the flags and runs the server until the context ends.
func serve(ctx context.Context, args []string, c console) error {
	var o serveOptions
	f := o.flags(c)
	if err := parse(f, args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return usageError{fmt.Errorf("serve takes flags only, not %q", f.Arg(0))}
	}
	if err := checkGiven(f); err != nil {
		return usageError{err}
	}
	if err := o.complete(); err != nil {
		return usageError{err}
	}
	log := o.logger(c.err)
	// The API server library logs through klog; its lines belong among ours, its chatter under
	// debug.
	klog.SetSlogLogger(slog.New(demoting{log.Handler()}))
	s, err := newServer(o, log)
	if err != nil {
		return err
	}
	return s.run(ctx, o.lingers(ctx, log))
}

// lingers returns a context that ends after ctx: in a pod later, for the API server and the
// sidecars are still led there.
func (o *serveOptions) lingers(ctx context.Context, log *slog.Logger) context.Context {
	if o.api.Standalone || o.api.Kubeconfig != "" {
		return ctx
	}
	later, end := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		log.Info("told to end: serving until the cluster's nodes know", "for", lingering)
		time.AfterFunc(lingering, end)
	})
	return later
}

// server is the wired process: one way in, one way out, and the store between them.
type server struct {
	log       *slog.Logger
	store     *aggregator.Store
	sink      *envoystats.Server
	api       *metricsapi.Server
	ingest    net.Listener
	profiling net.Listener      // nil: off
	prom      *prometheusServer // nil: off
	keda      *kedaServer       // nil: off
	replicas  *relay.Replicas   // nil: this is the only one
	peers     net.Listener      // of the others; nil as replicas are
	draining  chan struct{}

	keepCertificate func(context.Context) // new, until the context ends
}

// newServer opens every port and reads every file, so that what is wrong shows before anything
// runs.
func newServer(o serveOptions, log *slog.Logger) (_ *server, err error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), buildInfo(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	o.store.Registerer, o.sink.Registerer, o.api.Registerer, o.api.Gatherer = registry, registry, registry, registry
	o.store.Logger, o.sink.Logger, o.api.Log = log, log, log

	s := &server{log: log, draining: make(chan struct{})}
	defer func() {
		if err != nil {
			s.closeListeners()
		}
	}()
	o.store.Keep = o.sink.Kept()
	if s.store, err = aggregator.New(o.store); err != nil {
		return nil, usageError{err}
	}
	if s.keepCertificate, err = o.ingestTLS.open(&o.sink, log, registry); err != nil {
		return nil, err
	}
	if o.peers.given() {
		if s.replicas, s.peers, err = o.peers.open(&o, log, registry); err != nil {
			return nil, err
		}
		o.sink.Replicas, o.api.Replicas = s.replicas, s.replicas
	}
	if s.sink, err = envoystats.NewServer(o.sink, s.store); err != nil {
		return nil, usageError{err}
	}
	if s.replicas != nil {
		s.replicas.Relay(s.sink)
	}
	if s.ingest, err = listen("--ingest-address", o.ingestAddress); err != nil {
		return nil, err
	}
	if o.profilingAddress != "" {
		if s.profiling, err = listen("--profiling-address", o.profilingAddress); err != nil {
			return nil, err
		}
		if host, _, _ := net.SplitHostPort(o.profilingAddress); !loopback(host) {
			log.Warn("--profiling-address serves profiles to whoever reaches the address: give 127.0.0.1:PORT, and forward the port to look", "address", o.profilingAddress)
		}
	}
	o.api.Store, o.api.IngestReady, o.api.Keeps, o.api.CustomTags = s.store, s.ready, o.sink.Keeps, o.sink.CustomTags
	o.api.Proves = o.sink.Mutual != nil
	var token func() string
	if o.prom.address != "" {
		if s.prom, token, err = o.prom.open(log); err != nil {
			return nil, err
		}
	}
	if o.keda.address != "" {
		opened, err := o.keda.open(log, mostKEDAConnections)
		if err != nil {
			return nil, err
		}
		s.keda = &kedaServer{openedPort: opened}
	}
	if s.api, err = metricsapi.New(o.api); err != nil {
		return nil, err
	}
	if s.keda != nil {
		s.keda.answer(s.api, registry)
	}
	if s.prom != nil {
		options := promapi.Options{
			Store: s.store, Held: s.api.Held, Prefix: o.prom.prefix, Token: token, Retention: o.store.Retention, Version: version(), Registerer: registry, Log: log,
			Partial: s.partial,
			Now:     func() time.Time { return s.store.Time(time.Now()) }, // rows are of the store's clock, which no step of the wall clock moves
		}
		if s.replicas != nil {
			options.Incomplete = s.api.Incomplete
			options.Elsewhere = func(ctx context.Context, path string, form url.Values, own promapi.Answer) promapi.Answer {
				return promapi.Answer(s.api.Prometheus(ctx, path, form, metricsapi.PrometheusAnswer(own)))
			}
		}
		api := promapi.New(options)
		s.api.AnswerPrometheus(func(ctx context.Context, path string, form url.Values) metricsapi.PrometheusAnswer {
			return metricsapi.PrometheusAnswer(api.Here(ctx, path, form))
		})
		s.prom.server.Handler = api
	}
	return s, nil
}

// partial says why the store has not all that sidecars send.
func (s *server) partial() string {
	if s.replicas != nil && s.replicas.Several() {
		return "of more than two replicas each keeps a part of the namespaces, and this one is asked alone: run two"
	}
	return ""
}

// ready fails from the signal on: the load balancer shall not send what will not be answered.
func (s *server) ready() error {
	select {
	case <-s.draining:
		return errors.New("draining: streams are being ended")
	default:
		return nil
	}
}

// run serves until the context ends, some time after told has, or one part fails; then all parts
// end, and it returns when they have.
func (s *server) run(told, ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	go s.keepCertificate(ctx) // not waited for: its files may hang
	group.Go(func() error {
		s.store.Run(ctx)
		return nil
	})
	group.Go(func() error {
		if err := s.sink.Serve(s.ingest); err != nil {
			return fmt.Errorf("ingest on %s: %w", s.ingest.Addr(), err)
		}
		return nil
	})
	group.Go(func() error { return s.api.Run(ctx) })
	if s.replicas != nil {
		group.Go(func() error { return s.replicas.Serve(s.peers) })
		group.Go(func() error {
			s.replicas.Run(ctx)
			return nil
		})
	}
	if s.profiling != nil {
		group.Go(func() error { return serveProfiles(ctx, s.profiling) })
	}
	if s.prom != nil {
		group.Go(func() error { return s.prom.run(ctx) })
	}
	if s.keda != nil {
		group.Go(func() error { return s.keda.run(ctx) })
	}
	group.Go(func() error {
		<-ctx.Done()
		return s.drain()
	})
	s.tellServing()
	err := ended(told, ctx, group.Wait)
	if err == nil {
		s.log.Info("stopped")
	}
	return err
}

// tellServing says where it serves.
func (s *server) tellServing() {
	at := []any{"version", version(), "ingest", s.ingest.Addr().String(), "https", s.api.Addr().String(), "gomemlimit", debug.SetMemoryLimit(-1)}
	if s.prom != nil {
		at = append(at, "prometheus", s.prom.listener.Addr().String())
	}
	s.log.Info("serving", at...)
}

// ended waits for the parts to end, and for no longer than exitLimit once the process is told to
// end, or a part that fails has ended the context.
func ended(told, ctx context.Context, wait func() error) error {
	done := make(chan error, 1)
	go func() { done <- wait() }()
	select {
	case err := <-done:
		return err
	case <-told.Done():
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(exitLimit):
		return fmt.Errorf("not all was done %s after the end began: it is left as it is", exitLimit)
	}
}

// drain ends the streams; the API finishes its answers by itself at the same time.
func (s *server) drain() error {
	s.log.Info("stopping: ending streams, finishing answers")
	close(s.draining)
	ctx, cancel := context.WithTimeout(context.Background(), shutdownLimit)
	defer cancel()
	err := s.sink.Shutdown(ctx)
	if s.replicas != nil { // what sidecars have sent to the end is relayed
		ctx, cancel := context.WithTimeout(ctx, relayLimit)
		defer cancel()
		s.replicas.Shutdown(ctx)
	}
	if err != nil {
		return fmt.Errorf("ingest: streams did not end: %w", err)
	}
	return nil
}

func (s *server) closeListeners() {
	for _, l := range []net.Listener{s.ingest, s.profiling, s.peers} {
		if l != nil {
			_ = l.Close()
		}
	}
	if s.prom != nil {
		_ = s.prom.listener.Close()
	}
	if s.keda != nil {
		_ = s.keda.listener.Close()
	}
}

func listen(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s %s cannot be listened on: %w: give a free address of this machine", flag, address, err)
	}
	return l, nil
}
