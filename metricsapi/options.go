package metricsapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/fallback"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/shadow"
)

// Options is what a [Server] can be told. The zero value of a field means its default, but where it
// says otherwise; Store is required.
type Options struct {
	// Store answers the queries.
	Store *aggregator.Store
	// Retention is how far back the store's rings reach (default 5m, as in aggregator.Config): a
	// latency of a workload without requests is an error until it has been idle for so long.
	Retention time.Duration
	// Keeps says which metrics ingest keeps: what it drops is missing, not 0 (default: all).
	Keeps func(metric string) bool
	// CustomTags are labels that Telemetry resources add to Istio's own: a query may ask for them
	// before a series has any.
	CustomTags []string

	// CustomMetrics serves custom.metrics.k8s.io too: HPAs' metrics of type Pods and Object. In a
	// cluster only, whose pods are asked for.
	CustomMetrics bool

	// Hold is how long a sidecar that does not report is waited for, replicas kept (default 5m).
	Hold time.Duration

	// QueryNamespaces is "own" to have queries read only the series of their HPA's namespace and of
	// namespaces whose annotation [cluster.ReadableBy] lets them; "all" is the default. In a
	// cluster "own" reads the namespaces.
	QueryNamespaces string

	// Fallback is the Service of another adapter, NAMESPACE/SERVICE[:PORT], that is asked for every
	// metric which is not meshpulse's; "" is none. FallbackCAFile has the authorities, in PEM, that
	// its certificate is checked against, for the Service's name in the cluster.
	Fallback, FallbackCAFile string
	// dialFallback opens connections to it, or to that of Shadow, in tests; nil: by DNS.
	dialFallback func(ctx context.Context, network, address string) (net.Conn, error)
	// Shadow is the Service of another adapter, NAMESPACE/SERVICE[:PORT], which serves the HPAs,
	// and which HPAs' metrics are compared with every ShadowInterval (default 15s); "" is none.
	// Then nothing is acted on: no target is raised, and there is no event. It is asked through the
	// API server where it has the API there, else at its Service, whose certificate the authorities
	// of ShadowCAFile, in PEM, vouch for.
	Shadow, ShadowCAFile string
	// ShadowPrometheus is the URL of a Prometheus that HPAs' external metrics are compared with
	// every ShadowInterval; "" is none. Nothing goes by what it says.
	ShadowPrometheus string
	// ShadowPrometheusCAFile has the authorities, in PEM, that its certificate is checked against
	// ("": the system's), ShadowPrometheusTokenFile the bearer token that it is shown ("": none),
	// over TLS or to a loopback address alone. Both are read again each time.
	ShadowPrometheusCAFile, ShadowPrometheusTokenFile string

	ShadowInterval time.Duration
	// ServeBy is "opt-in" to serve only HPAs whose annotation [hpas.Serve], or their namespace's,
	// is "true"; "all" is the default, and serves those where it is not "false".
	ServeBy string

	// ScalerAddresses are those by which triggers of KEDA's ScaledObjects name meshpulse as their
	// scaler, host:port; without any nothing is read of ScaledObjects. In a cluster only.
	ScalerAddresses []string

	// SurgeAction is "off" to raise no target at a surge, whatever HPAs ask for; "on" is the
	// default.
	SurgeAction string
	// HPATolerance is the HPA controller's --horizontal-pod-autoscaler-tolerance, for HPAs that set
	// none; 0 is none at all, and the controller's own default is 0.1. A target is raised to what
	// the controller would set, and an answer that keeps replicas is one that it makes them of.
	HPATolerance float64

	// BindAddress is the IP address to serve HTTPS on (default 0.0.0.0; standalone: 127.0.0.1).
	BindAddress string
	// SecurePort is the port to serve HTTPS on; 0 lets the system choose one (see [Server.Addr]).
	SecurePort int
	// TLSCertFile and TLSKeyFile hold the serving certificate and its key in PEM. They are reloaded
	// when they change. Without them a self-signed certificate is made, in memory or, where CertDir
	// is set, in that folder.
	TLSCertFile, TLSKeyFile string
	CertDir                 string

	// Standalone reads HPAs from the files of HPADir and asks no API server for anything. Otherwise
	// HPAs are watched, and requests authenticated and authorised, through the API server.
	Standalone bool
	HPADir     string
	// TokenAuthFile (standalone) holds the bearer tokens that are let in, as in Kubernetes: a line
	// is token,user,uid[,"group1,group2"]. Without it everybody is let in, which is refused unless
	// BindAddress is a loopback address.
	TokenAuthFile string
	// Kubeconfig tells the way to the API server; "" means the pod's own service account.
	Kubeconfig string

	// MaxReadsPerUser bounds the answers that are in the making for one user at once (default 100;
	// an HPA controller asks for as many as its --concurrent-horizontal-pod-autoscaler-syncs, 5 by
	// default); /debug/hpas, of all HPAs, counts as one. Beyond it requests are refused with 429.
	MaxReadsPerUser int

	// Replicas are the others beside this one, which then is ready only once it is warm; nil where
	// there is none.
	Replicas Replicas
	// PeersService is the headless Service of all replicas in a cluster, NAMESPACE/NAME, whose
	// endpoints PeersFound is told of: at their port named peers.
	PeersService string
	PeersFound   func([]cluster.Replica)

	// Proves: ingest takes what sidecars prove of themselves, and /debug/hpas shows it.
	Proves bool
	// IngestReady says whether flushes can come in; nil means they can. Its error makes health
	// checks fail.
	IngestReady func() error
	// Registerer receives the package's own metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
	// Gatherer is what /metrics shows, beside the API server library's own metrics; nil shows only
	// those.
	Gatherer prometheus.Gatherer
	// Log is where state changes go, and in standalone mode events (default slog.Default()).
	Log *slog.Logger
	// Now is the clock (default the store's).
	Now func() time.Time
}

// beside says whether another adapter has what is not meshpulse's.
func (o Options) beside() bool { return o.Fallback != "" || o.Shadow != "" }

func (o Options) shadowPrometheus() shadow.PrometheusConfig {
	return shadow.PrometheusConfig{URL: o.ShadowPrometheus, CAFile: o.ShadowPrometheusCAFile, TokenFile: o.ShadowPrometheusTokenFile}
}

// Values of Options.ServeBy.
const (
	serveByAll   = "all"
	serveByOptIn = "opt-in"
)

// withDefaults returns the options with defaults in place of zero values.
func (o Options) withDefaults() Options {
	o.Retention = cmp.Or(o.Retention, 5*time.Minute)
	o.MaxReadsPerUser = cmp.Or(o.MaxReadsPerUser, 100)
	o.Hold = cmp.Or(o.Hold, 5*time.Minute)
	o.ShadowInterval = cmp.Or(o.ShadowInterval, 15*time.Second)
	o.QueryNamespaces = cmp.Or(o.QueryNamespaces, queryNamespacesAll)
	o.SurgeAction = cmp.Or(o.SurgeAction, surgeActionOn)
	o.ServeBy = cmp.Or(o.ServeBy, serveByAll)
	if o.Standalone {
		o.BindAddress = cmp.Or(o.BindAddress, "127.0.0.1")
	}
	o.BindAddress = cmp.Or(o.BindAddress, "0.0.0.0")
	o.Log = cmp.Or(o.Log, slog.Default())
	if o.IngestReady == nil {
		o.IngestReady = func() error { return nil }
	}
	if o.Now == nil {
		o.Now = time.Now
		if o.Store != nil { // ages and windows are of the store's clock, which no step of the wall clock moves
			o.Now = func() time.Time { return o.Store.Time(time.Now()) }
		}
	}
	return o
}

// scaler says whether a trigger's scalerAddress leads here; nil where none does.
func (o Options) scaler() func(address string) bool {
	if len(o.ScalerAddresses) == 0 {
		return nil
	}
	return func(address string) bool { return slices.Contains(o.ScalerAddresses, address) }
}

// Validate says what does not fit together, naming the flag that is wrong and the remedy. It opens
// no file.
func (o Options) Validate() error {
	o = o.withDefaults()
	var errs []error
	fail := func(when bool, format string, args ...any) {
		if when {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	ip := net.ParseIP(o.BindAddress)
	fail(ip == nil, "--bind-address %q is not an IP address", o.BindAddress)
	fail(o.SecurePort < 0 || o.SecurePort > 65535, "--secure-port %d is not a port: give one from 0 to 65535", o.SecurePort)
	fail((o.TLSCertFile == "") != (o.TLSKeyFile == ""), "--tls-cert-file and --tls-private-key-file belong together: give both, or neither for a self-signed certificate")
	fail(o.Hold < 0, "--hold %s is negative: give how long a silent sidecar is waited for, such as 5m", o.Hold)
	fail(o.QueryNamespaces != queryNamespacesAll && o.QueryNamespaces != queryNamespacesOwn, "--query-namespaces %q is neither all nor own", o.QueryNamespaces)
	fail(o.SurgeAction != surgeActionOn && o.SurgeAction != string(hpas.SurgeOff), "--surge-action %q is neither on nor off", o.SurgeAction)
	fail(o.ServeBy != serveByAll && o.ServeBy != serveByOptIn, "--serve-by %q is neither all nor opt-in", o.ServeBy)
	if o.Fallback != "" {
		_, err := fallback.ParseAddress(o.Fallback)
		fail(err != nil, "--fallback: %w", err)
		fail(o.FallbackCAFile == "", "--fallback needs --fallback-ca-file FILE, the authority that the other adapter's certificate is checked against: what its APIService has as caBundle")
		fail(o.Standalone, "--fallback has no meaning with --standalone: there is no other adapter")
	}
	fail(o.Fallback == "" && o.FallbackCAFile != "", "--fallback-ca-file is for --fallback NAMESPACE/SERVICE, which is missing")
	if o.Shadow != "" {
		_, err := fallback.ParseAddress(o.Shadow)
		fail(err != nil, "--shadow: %w", err)
		fail(o.Fallback != "", "--shadow and --fallback are opposites: beside --shadow another adapter serves the HPAs, with --fallback meshpulse does. Leave one of them out")
		fail(o.ShadowPrometheus != "", "--shadow and --shadow-prometheus are two to compare with: leave one of them out")
		fail(o.Standalone, "--shadow has no meaning with --standalone: there is no other adapter")
	}
	fail(o.Shadow == "" && o.ShadowCAFile != "", "--shadow-ca-file is for --shadow NAMESPACE/SERVICE, which is missing")
	if o.ShadowPrometheus != "" {
		err := o.shadowPrometheus().Validate()
		fail(err != nil, "--shadow-prometheus: %w", err)
	}
	fail(o.ShadowPrometheus == "" && o.ShadowPrometheusCAFile+o.ShadowPrometheusTokenFile != "", "--shadow-prometheus-ca-file and --shadow-prometheus-token-file are for --shadow-prometheus URL, which is missing")
	fail(o.ShadowInterval < time.Second, "--shadow-interval %s is less than a second: give 1s or more", o.ShadowInterval)
	fail(o.MaxReadsPerUser < 0, "--max-reads-per-user %d is negative: leave it out for the default", o.MaxReadsPerUser)
	fail(!(o.HPATolerance >= 0 && o.HPATolerance < 1), "--hpa-tolerance %g is not from 0 to below 1: give the HPA controller's own, such as 0.1", o.HPATolerance)
	fail(o.Retention < 0, "the store's retention %s is negative", o.Retention)
	fail(o.Standalone && o.HPADir == "", "--standalone needs --hpa-dir DIR, the folder with the HPAs' YAML files")
	fail(o.Standalone && o.Kubeconfig != "", "--kubeconfig has no meaning with --standalone, which asks no API server: leave one of them out")
	fail(o.Standalone && ip != nil && !ip.IsLoopback() && o.TokenAuthFile == "", "--bind-address %s can be reached from other machines, and nobody would be asked who they are: "+
		"give --token-auth-file FILE (lines of token,user,uid), or bind to 127.0.0.1", o.BindAddress)
	fail(o.Standalone && o.CustomMetrics, "--custom-metrics asks a cluster for its pods: leave it out with --standalone")
	fail(o.Standalone && len(o.ScalerAddresses) > 0, "KEDA asks for what its cluster's API server tells: leave --keda-address out with --standalone")
	fail(!o.Standalone && o.HPADir != "", "--hpa-dir is read with --standalone only: in a cluster HPAs come from the API server")
	fail(!o.Standalone && o.TokenAuthFile != "", "--token-auth-file is for --standalone only: in a cluster the API server says who a caller is")
	return errors.Join(errs...)
}
