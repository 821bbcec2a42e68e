package metricsapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/healthz"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	adapterserver "sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver"
	generatedcore "sigs.k8s.io/custom-metrics-apiserver/pkg/generated/openapi/core"
	generatedcustom "sigs.k8s.io/custom-metrics-apiserver/pkg/generated/openapi/custommetrics"
	generatedexternal "sigs.k8s.io/custom-metrics-apiserver/pkg/generated/openapi/externalmetrics"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/fallback"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

const (
	serverName = "meshpulse"
	// requestTimeout bounds an answer, and with it how long a drain takes: the process has 5 s to
	// end.
	requestTimeout = 4 * time.Second
	// ownService is the name of the Service that leads here, whatever namespace it is in.
	ownService = "meshpulse"
	// fallbackAccount is who asks the other adapter.
	fallbackAccount = "meshpulse-fallback"
)

// Server is the HTTPS side of meshpulse: the external metrics API, /healthz, /livez, /readyz,
// /metrics and /debug/hpas.
type Server struct {
	provider *provider
	source   source
	api      *cluster.API // nil in standalone mode
	options  Options
	config   *genericapiserver.Config
	generic  *genericapiserver.GenericAPIServer // nil until the API server has answered
	listener net.Listener
	passing  *passing   // nil: there is no other adapter
	shadow   *shadowing // nil: nothing is compared

	prometheus func(context.Context, string, url.Values) PrometheusAnswer // nil: no Prometheus API is served
}

// New checks the options, reads certificates, tokens or the kubeconfig, and opens the port. Errors
// name the file, the address or the flag, and the remedy. No API server is asked for anything
// before Run.
func New(o Options) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Store == nil {
		return nil, errors.New("no store to answer from")
	}
	o = o.withDefaults()
	s := &Server{options: o}
	m := newMetrics(o.Registerer)
	if err := s.addSource(o, m); err != nil {
		return nil, err
	}
	if err := s.addShadow(o); err != nil {
		return nil, err
	}
	if err := s.listen(o); err != nil {
		return nil, err
	}
	if o.Replicas != nil {
		s.provider.show = s.show
		o.Replicas.Answer(s.provider.asked)
	}
	err := s.configure()
	if err == nil && o.Standalone {
		err = s.build()
	}
	if err != nil {
		_ = s.listener.Close()
		return nil, err
	}
	return s, nil
}

// addSource makes the catalog, what feeds it and what takes its events.
func (s *Server) addSource(o Options, m *metrics) error {
	words := hpas.Vocabulary{Keeps: o.Keeps, Tags: o.CustomTags, Custom: o.CustomMetrics, Shared: o.beside()}
	s.provider = &provider{replicas: o.Replicas, metrics: m, readers: newReaders(o.MaxReadsPerUser, o.Log), now: o.Now, rules: rules{words: words, retention: o.Retention, started: o.Store.Started()}}
	if o.Standalone {
		c := newCatalog(o.Store, newWarner(logEvents(o.Log), m))
		c.words, s.provider.catalog = words, c
		c.sharing.OptIn = o.ServeBy == serveByOptIn
		s.provider.history = newHistory(s.settings(), func(string, string) (*autoscalingv2.HorizontalPodAutoscaler, bool) { return nil, false })
		c.history = s.provider.history
		s.measureStanding(o)
		if o.QueryNamespaces == queryNamespacesOwn {
			c.limit(ownOnly{})
		}
		files, err := newFileSource(o.HPADir, c, m, o.Log)
		s.source = files
		s.addActor(o, &actor{report: func(hpas.HPA, hpas.Problem) {}, hpa: files.Known})
		return err
	}
	own, shares := o.QueryNamespaces == queryNamespacesOwn, o.Fallback != "" || o.ServeBy == serveByOptIn
	api, err := cluster.Connect(cluster.Options{
		Kubeconfig: o.Kubeconfig, Namespaces: own || shares, NamespacesFirst: shares,
		Contain: o.Store.Contain, Log: o.Log, Now: o.Now, Behind: m.clockBehind.Set,
		PeersService: o.PeersService, PeersFound: o.PeersFound, ScaledObjects: o.Shadow != "" || o.ShadowPrometheus != "", Scaler: o.scaler(),
	})
	if err != nil {
		return err
	}
	o.Store.SetPods(api.Pods)
	tell := api.Events.Warn
	if o.Shadow != "" { // who serves the HPAs is another, and explanations have it
		tell = nil
	}
	c := newCatalog(o.Store, newWarner(tell, m))
	c.words, s.provider.catalog = words, c
	s.provider.history = newHistory(s.settings(), api.HPAs.Known)
	c.history = s.provider.history
	s.measureStanding(o)
	measureEvents(o.Registerer, api.Events)
	api.HPAs.Replace = c.Replace
	if own {
		c.limit(api.Namespaces)
	}
	if c.sharing = (sharing{passes: o.beside()}); shares {
		c.sharing.Serving = hpas.Serving{OptIn: o.ServeBy == serveByOptIn, Namespace: api.Namespaces.Serve}
	}
	s.api, s.source = api, api.HPAs
	if o.CustomMetrics {
		s.provider.custom = &customProvider{s.provider, func(ctx context.Context, namespace, selector string) ([]cluster.SelectedPod, error) {
			return cluster.SelectPods(ctx, api.Client, namespace, selector)
		}}
	}
	scales := cluster.NewAskedFreshness("scales", o.Now)
	s.provider.rules.holder = &holder{
		pods: api.Pods, scales: api.Scales, scalesFresh: scales, hpasFresh: api.HPAs.Freshness(), status: api.HPAs.Status,
		settings: horizontal.Settings{Tolerance: o.HPATolerance}, store: o.Store, started: o.Store.Started(), hold: o.Hold,
	}
	fresh := map[string]*cluster.Freshness{"pods": api.Pods.Freshness(), "hpas": api.HPAs.Freshness(), "scales": scales}
	if api.Namespaces != nil {
		fresh["namespaces"] = api.Namespaces.Freshness()
	}
	if api.ScaledObjects != nil {
		fresh["scaledobjects"] = api.ScaledObjects.Freshness()
	}
	measureFreshness(o.Registerer, fresh)
	if err := s.addFallback(o, m); err != nil {
		return err
	}
	s.addActor(o, &actor{report: api.Events.Report, hpa: api.HPAs.Known, fresh: api.HPAs.Current, targets: api.Scales, pods: api.Pods})
	if x := s.provider.rules.actor; x != nil {
		api.HPAs.Scaled = x.scaled
	}
	return nil
}

// addFallback makes what passes on to the other adapter, where there is one.
func (s *Server) addFallback(o Options, m *metrics) error {
	if o.Fallback == "" {
		return nil
	}
	to, err := fallback.ParseAddress(o.Fallback)
	if err != nil {
		return fmt.Errorf("--fallback: %w", err)
	}
	namespace := cluster.OwnNamespace(o.Kubeconfig)
	if to.Namespace == namespace && to.Service == ownService {
		return fmt.Errorf("--fallback %s is meshpulse's own Service, which would ask itself: give the other adapter's", o.Fallback)
	}
	p := &passing{catalog: s.provider.catalog, elsewhere: s.provider.knownElsewhere, metrics: m, own: namespace, custom: o.CustomMetrics, changed: promauto.With(o.Registerer).NewGauge(prometheus.GaugeOpts{
		Name: "meshpulse_metricsapi_apiservice_changed",
		Help: "1 while the APIService of external or of custom metrics has been changed by somebody else, so that the API server does not come here by it.",
	}), known: func() error {
		return errors.Join(s.source.Synced(), s.api.HPAs.Freshness().Stale(), s.api.Namespaces.Freshness().Stale())
	}}
	p.to, err = fallback.New(fallback.Config{
		Address: to, CAFile: o.FallbackCAFile, Fail: p.noAnswer, Dial: o.dialFallback, Log: o.Log,
		Tokens: cluster.Tokens{Client: s.api.Client, Namespace: namespace, Name: fallbackAccount, Now: time.Now},
	})
	if err != nil {
		return fmt.Errorf("--fallback-ca-file %w", err)
	}
	p.theirs = &theirs{to: p.to, custom: o.CustomMetrics, failed: m.listFailed, log: o.Log}
	s.passing, s.provider.theirs = p, p.theirs
	return nil
}

// measureStanding registers what is wrong now.
func (s *Server) measureStanding(o Options) {
	if o.Registerer == nil {
		return
	}
	proving := o.Store
	if !o.Proves {
		proving = nil
	}
	o.Registerer.MustRegister(newStandingTroubles(s.provider.history, proving, o.Now))
}

// addActor makes what raises targets at surges, from what is known of the cluster.
func (s *Server) addActor(o Options, x *actor) {
	if o.SurgeAction == string(hpas.SurgeOff) || o.Shadow != "" {
		return
	}
	x.catalog, x.rules, x.store, x.metrics, x.log, x.now = s.provider.catalog, &s.provider.rules, o.Store, s.provider.metrics, o.Log, o.Now
	x.settings.Tolerance = o.HPATolerance
	x.leads, x.tell = s.provider.leads, s.provider.tellOwners
	s.provider.rules.actor = newActor(x)
	s.provider.catalog.follow = s.provider.rules.actor.follow
}

func (s *Server) listen(o Options) error {
	address := net.JoinHostPort(o.BindAddress, strconv.Itoa(o.SecurePort))
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("cannot serve HTTPS on %s: %w: free the port, or choose others with --bind-address and --secure-port", address, err)
	}
	s.listener = newFairListener(l, MaxConnections, s.provider.metrics.refusedConnections.Inc)
	return nil
}

// configure reads what the HTTPS port needs from files.
func (s *Server) configure() error {
	o := s.options
	s.config = genericapiserver.NewConfig(adapterserver.Codecs)
	s.config.RequestTimeout = requestTimeout
	s.config.EnableMetrics = false // /metrics is ours, with the library's metrics in it
	describe(s.config)
	s.config.AggregatedDiscoveryGroupManager = newAggregatedDiscovery(s.provider, s.custom())
	if err := secure(s.config, o, s.listener); err != nil {
		return err
	}
	ingest := healthz.NamedCheck("ingest", func(*http.Request) error { return o.IngestReady() })
	s.config.AddHealthChecks(ingest)
	if o.Replicas != nil {
		s.config.AddReadyzChecks(healthz.NamedCheck("warm", func(*http.Request) error { return o.Replicas.Cold() }))
	}
	if s.api == nil {
		s.config.AddReadyzChecks(healthz.NamedCheck("hpas", func(*http.Request) error { return s.source.Synced() }))
		return nil
	}
	s.config.AddReadyzChecks(readCheck{"hpas", s.source.Synced, s.provider.rules.holder.hpasFresh}, readCheck{"pods", s.api.Pods.Read, s.api.Pods.Freshness()})
	if n := s.api.Namespaces; n != nil {
		s.config.AddReadyzChecks(readCheck{"namespaces", n.Read, n.Freshness()})
	}
	return nil
}

// readCheck is the readiness of something that is read from the API server: once it has been, it is
// ready. That nothing more comes is said, and takes no answers away, or one fault of the API server
// would take all of them.
type readCheck struct {
	what  string
	read  func() error
	fresh *cluster.Freshness
}

// Name is what /readyz?verbose says.
func (c readCheck) Name() string {
	if c.read() == nil && c.fresh.Stale() != nil {
		return c.what + " (nothing heard of them for more than 20 seconds: replicas are not lowered)"
	}
	return c.what
}

// Check is nil once it has been read.
func (c readCheck) Check(*http.Request) error { return c.read() }

// build makes the server; in a cluster the API server has to be there for it. The library's own
// AdapterBase wants a kubeconfig in any case, so its parts are put together here.
func (s *Server) build() error {
	if err := admit(s.config, s.options); err != nil {
		return err
	}
	if s.passing != nil {
		s.config.BuildHandlerChainFunc = func(ours http.Handler, c *genericapiserver.Config) http.Handler {
			return genericapiserver.DefaultBuildHandlerChain(s.passing.over(ours), c)
		}
	}
	adapted := adapterserver.Config{GenericConfig: s.config}
	server, err := adapted.Complete(nil).New(serverName, s.custom(), s.provider)
	if err != nil {
		return fmt.Errorf("cannot set up the API server: %w", err)
	}
	s.generic = server.GenericAPIServer
	s.generic.Handler.NonGoRestfulMux.Handle(metricsPath, metricsHandler(s.options.Gatherer))
	s.generic.Handler.NonGoRestfulMux.HandleFunc("/debug/hpas", s.serveStatus)
	s.generic.Handler.NonGoRestfulMux.HandleFunc(ownPath, s.serveOwn)
	s.generic.Handler.NonGoRestfulMux.HandlePrefix(ownPath+"/", http.HandlerFunc(s.serveOwn))
	s.generic.DiscoveryGroupManager.AddGroup(ownGroup())
	return nil
}

// describe adds the OpenAPI documents that an aggregating API server asks for.
func describe(config *genericapiserver.Config) {
	definitions := func(ref openapicommon.ReferenceCallback) map[string]openapicommon.OpenAPIDefinition {
		all := generatedcore.GetOpenAPIDefinitions(ref)
		maps.Copy(all, generatedexternal.GetOpenAPIDefinitions(ref))
		maps.Copy(all, generatedcustom.GetOpenAPIDefinitions(ref))
		return all
	}
	namer := openapinamer.NewDefinitionNamer(adapterserver.Scheme)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(definitions, namer)
	config.OpenAPIConfig.Info.Title = serverName
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, namer)
	config.OpenAPIV3Config.Info.Title = serverName
}

// secure sets up TLS on the listener: the given certificate, else a self-made one.
func secure(config *genericapiserver.Config, o Options, l net.Listener) error {
	for _, f := range []struct{ flag, path string }{{"--tls-cert-file", o.TLSCertFile}, {"--tls-private-key-file", o.TLSKeyFile}} {
		if err := readable(f.flag, f.path); err != nil {
			return err
		}
	}
	serving := genericoptions.NewSecureServingOptions()
	serving.Listener = l
	serving.BindAddress = net.ParseIP(o.BindAddress)
	serving.ServerCert = genericoptions.GeneratableKeyCert{
		CertKey:       genericoptions.CertKey{CertFile: o.TLSCertFile, KeyFile: o.TLSKeyFile},
		CertDirectory: o.CertDir,
		PairName:      serverName,
	}
	if err := serving.MaybeDefaultWithSelfSignedCerts("localhost", nil, []net.IP{net.IPv4(127, 0, 0, 1)}); err != nil {
		return fmt.Errorf("--cert-dir %s: cannot make a certificate: %w", o.CertDir, err)
	}
	if err := serving.WithLoopback().ApplyTo(&config.SecureServing, &config.LoopbackClientConfig); err != nil {
		return fmt.Errorf("--tls-cert-file %s, --tls-private-key-file %s: not a certificate with its key in PEM: %w", o.TLSCertFile, o.TLSKeyFile, err)
	}
	return nil
}

// readable checks a file before the library does, whose errors name no flag.
func readable(flag, path string) error {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w: give a file that can be read", flag, err)
	}
	return f.Close()
}

// Addr is the address that the server listens on, with the port that was chosen where SecurePort is
// 0.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until the context ends; answers in flight are finished then, for at most 4 s. It
// returns nil after such an end. It is called once.
func (s *Server) Run(ctx context.Context) error {
	// The feeders outlive the drain: an answer in flight still finds its query.
	feeding, stop := context.WithCancel(context.WithoutCancel(ctx))
	serving, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var feeders sync.WaitGroup
	feeders.Go(func() {
		if err := s.source.Run(feeding); err != nil {
			fail(fmt.Errorf("HPAs: %w", err))
		}
	})
	if x := s.provider.rules.actor; x != nil {
		feeders.Go(func() { x.run(feeding) })
	} else if len(s.options.ScalerAddresses) > 0 {
		feeders.Go(func() { s.followRows(feeding) })
	}
	feeders.Go(func() { s.provider.catalog.keepTelling(feeding) })
	if s.shadow != nil {
		feeders.Go(func() { s.shadow.run(feeding) })
	}
	if s.api != nil {
		feeders.Go(func() { s.api.Events.Run(feeding) })
		feeders.Go(func() { s.api.Pods.Run(feeding) })
		if s.passing != nil {
			feeders.Go(func() { s.passing.to.Run(feeding) })
			feeders.Go(func() { s.passing.theirs.run(feeding) })
			feeders.Go(func() { s.watchAPIServices(feeding) })
		}
		if n := s.api.Namespaces; n != nil {
			feeders.Go(func() { n.Run(feeding) })
		}
		if n := s.api.ScaledObjects; n != nil {
			feeders.Go(func() { n.Run(feeding) })
		}
		if n := s.api.Replicas; n != nil {
			feeders.Go(func() { n.Run(feeding) })
		}
	}
	err := s.serve(serving)
	stop()
	feeders.Wait()
	s.provider.catalog.Close()
	if cause := context.Cause(serving); err == nil && ctx.Err() == nil {
		err = cause
	}
	return err
}

// serve answers until the context ends.
func (s *Server) serve(ctx context.Context) error {
	if s.generic == nil {
		if cluster.Await(ctx, s.api.Client, s.options.Log) != nil {
			return s.listener.Close() // ended before anybody could ask
		}
		if err := s.build(); err != nil {
			return errors.Join(err, s.listener.Close())
		}
	}
	return s.generic.PrepareRun().RunWithContext(ctx)
}
