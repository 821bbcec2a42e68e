package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats"
	"github.com/meshpulse/meshpulse/metricsapi"
)

const serveText = `Takes flushes of Envoy sidecars in and answers the external metrics API from them.

  meshpulse serve                                 in a cluster, see manifests/
  meshpulse serve --standalone --hpa-dir DIR      on one machine: HPAs from YAML files

/healthz, /livez, /readyz, /metrics and /debug/hpas are on the secure port. SIGTERM drains and ends within 5 s;
a pod first serves on for 2.5 s of them, while the cluster still sends it there.
Memory: GOMEMLIMIT is nine tenths of the container's limit where it is not set; --memory-budget then bounds what is kept.
Bytes are a number, or as Kubernetes writes them: 64Mi.`

// defaultIngestPort is where sidecars are wired to (manifests/istio).
const defaultIngestPort = "15090"

// serveOptions are the flags of serve.
type serveOptions struct {
	store     aggregator.Config
	sink      envoystats.Config
	api       metricsapi.Options
	ingestTLS ingestTLS
	prom      prometheusAPI
	keda      kedaScaler
	peers     peers

	ingestAddress    string
	profilingAddress string
	foreignPods      string
	logFormat        string
	logLevel         string
}

// flags returns a flag set that fills o.
func (o *serveOptions) flags(c console) *pflag.FlagSet {
	f := newFlags("serve", serveText, c)
	f.StringVar(&o.ingestAddress, "ingest-address", "", "host:port on which sidecars report, gRPC (default 0.0.0.0:15090, standalone 127.0.0.1:15090)")
	o.ingestTLS.flags(f)

	f.StringSliceVar(&o.sink.Keep, "keep", nil, "prefixes of the metrics that every pod keeps, without istiocustom. (default istio_requests_total, istio_request_messages_total, istio_response_messages_total, istio_tcp_; istio_request_duration_milliseconds is always kept, which says how many requests a counter began with). Of Istio's others, such as istio_request_bytes, a pod keeps those that HPAs name which mean it. Envoy's own, gauges among them, are kept by their names in Prometheus: envoy_http_downstream_rq_active")
	f.StringSliceVar(&o.sink.CustomTags, "custom-tags", nil, "tags that Telemetry resources add to Istio's own, needed where sidecars join tags into names")
	f.BoolVar(&o.store.CountersAsDeltas, "counters-as-deltas", false, "the sidecars set report_counters_as_deltas (a message does not tell)")
	f.Var(byteSize[int]{&o.sink.MaxMessageBytes}, "max-message-bytes", "largest message of a sidecar (default 64Mi)")
	f.Var(byteSize[int]{&o.sink.MaxPendingBytes}, "max-pending-bytes", "most bytes of messages that are not whole yet, of all sidecars together; past it connections of the address with most of them are closed (default 1/4 of GOMEMLIMIT, without that 1Gi; at least 4 x --max-message-bytes and 16Mi)")
	f.Var(byteSize[int]{&o.sink.MaxBytesPerSecond}, "max-bytes-per-second", "most bytes a second of one sidecar, a message counting 4 KiB more; past it the next one is read later (default 16Mi)")
	f.IntVar(&o.sink.MaxStreams, "max-streams", 0, "most sidecars connected at once (default 50000)")
	f.IntVar(&o.sink.MaxConnections, "max-connections", 0, "most connections to the ingest port at once (default --max-streams and a tenth or a hundred more; one each 128 KiB of GOMEMLIMIT, 256 where there is TLS, and three quarters of the files that may be open, at most)")

	f.DurationVar(&o.store.Retention, "retention", 0, "how far back samples are kept (default 5m)")
	f.DurationVar(&o.store.MaxRetention, "max-retention", 0, "how far back a query's range may reach (default 1h)")
	f.DurationVar(&o.api.Hold, "hold", 0, "how long a sidecar that does not report is waited for, replicas kept (default 5m)")
	f.Float64Var(&o.api.HPATolerance, "hpa-tolerance", 0.1, "the HPA controller's --horizontal-pod-autoscaler-tolerance, which raises at surges and answers that keep replicas go by where an HPA sets none")
	f.StringVar(&o.api.QueryNamespaces, "query-namespaces", "all", "whose series an HPA's query reads. all: everybody's, and an event tells of those of other namespaces; own: what the pods of its namespace report, requests to its namespace, and all of namespaces annotated meshpulse.io/readable-by: NAMESPACE,… or \"*\" (in a cluster: manifests/components/own-namespaces)")
	f.BoolVar(&o.api.CustomMetrics, "custom-metrics", false, "serve custom.metrics.k8s.io too: HPAs' metrics of type Pods and Object (in a cluster: manifests/components/custom-metrics)")
	f.StringVar(&o.api.Fallback, "fallback", "", "NAMESPACE/SERVICE[:PORT] of another adapter, which is asked for all external metrics, and with --custom-metrics all custom ones, that are not meshpulse's (in a cluster: manifests/install.sh --fallback)")
	f.StringVar(&o.api.FallbackCAFile, "fallback-ca-file", "", "authority (PEM) that the other adapter's certificate is checked against, for SERVICE.NAMESPACE.svc")
	f.StringVar(&o.api.Shadow, "shadow", "", "NAMESPACE/SERVICE[:PORT] of another adapter, which serves the HPAs and whose answers are compared with those here: see meshpulse shadow report. Nothing is acted on (in a cluster: manifests/install.sh --shadow)")
	f.StringVar(&o.api.ShadowCAFile, "shadow-ca-file", "", "authority (PEM) that the certificate of --shadow is checked against, for SERVICE.NAMESPACE.svc, where it does not have the API by which the API server asks it")
	f.StringVar(&o.api.ShadowPrometheus, "shadow-prometheus", "", "URL of a Prometheus that HPAs' external metrics are compared with: see meshpulse shadow report. Nothing goes by what it says")
	f.StringVar(&o.api.ShadowPrometheusCAFile, "shadow-prometheus-ca-file", "", "authority (PEM) that its certificate is checked against (default: the system's)")
	f.StringVar(&o.api.ShadowPrometheusTokenFile, "shadow-prometheus-token-file", "", "file with the bearer token that it is shown, over https, or on this machine")
	f.DurationVar(&o.api.ShadowInterval, "shadow-interval", 15*time.Second, "how often they are compared")
	f.StringVar(&o.api.ServeBy, "serve-by", "all", "which HPAs are served, the others left to --fallback. all: those that, or whose namespaces, are not annotated meshpulse.io/serve: \"false\"; opt-in: those that are annotated \"true\"")
	f.StringVar(&o.api.SurgeAction, "surge-action", "on", "on: HPAs with meshpulse.io/surge-action: scale have their targets raised at surges; off: none has")
	f.IntVar(&o.store.MaxSeries, "max-series", 0, "most series in all; past it samples of new ones are counted and dropped (default 2000000)")
	f.StringVar(&o.foreignPods, "foreign-pods", "refuse", "refuse: pods that the API server denies when it is asked at their first flush, or does not know half a minute after it, are not counted; count: they are, as virtual machines and pods of other clusters have to be. Standalone all are")
	f.IntVar(&o.store.MaxPods, "max-pods", 0, "most pods of which something is known; past it what new ones send is dropped (default 50000)")
	f.IntVar(&o.store.MaxSeriesPerPod, "max-series-per-pod", 0, "most series of one pod (default 20000)")
	f.Var(byteSize[int64]{&o.store.MemoryBudget}, "memory-budget", "bytes, of what is kept and of the live heap, past which samples of new series are counted and dropped (default 3/4 of GOMEMLIMIT; without that none)")

	f.StringVar(&o.api.BindAddress, "bind-address", "", "IP address of the HTTPS port (default 0.0.0.0, standalone 127.0.0.1)")
	f.IntVar(&o.api.SecurePort, "secure-port", 6443, "HTTPS port; 0 takes a free one and logs it")
	f.IntVar(&o.api.MaxReadsPerUser, "max-reads-per-user", 0, "most answers in the making for one user at once; past it requests are refused with 429 (default 100)")
	f.StringVar(&o.api.TLSCertFile, "tls-cert-file", "", "certificate (PEM) of the HTTPS port (default: a self-made one)")
	f.StringVar(&o.api.TLSKeyFile, "tls-private-key-file", "", "key (PEM) of the certificate")
	f.StringVar(&o.api.CertDir, "cert-dir", "", "folder that keeps the self-made certificate (default: in memory)")
	f.StringVar(&o.api.Kubeconfig, "kubeconfig", "", "way to the API server (default: the pod's service account)")

	f.BoolVar(&o.api.Standalone, "standalone", false, "read HPAs from --hpa-dir and ask no API server")
	f.StringVar(&o.api.HPADir, "hpa-dir", "", "standalone: folder with YAML files of HPAs, watched for changes")
	f.StringVar(&o.api.TokenAuthFile, "token-auth-file", "", "standalone: bearer tokens to let in, a line is token,user,uid (default: everybody, on loopback addresses only)")

	o.prom.flags(f)
	o.keda.flags(f)
	o.peers.flags(f)

	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.profilingAddress, "profiling-address", "", "host:port that serves /debug/pprof/ over HTTP to whoever reaches it, such as 127.0.0.1:6060 (default: off)")
	return f
}

// leastBudget leaves something for series: the heap of a process without any is some 15 MiB, and
// counts.
const leastBudget = 32 << 20

// complete fills in what depends on other flags and says what is wrong with them.
func (o *serveOptions) complete() error {
	if o.ingestAddress == "" {
		o.ingestAddress = net.JoinHostPort(o.usualHost(), defaultIngestPort)
	}
	o.api.Retention = o.store.Retention
	o.sink.CountersAsDeltas = o.store.CountersAsDeltas
	if o.store.MaxSeriesPerPod > 0 {
		o.sink.MaxCallerSeries = max(1, o.store.MaxSeriesPerPod/2) // what callers make leaves room for the rest
	}
	var wrong complaints
	wrong.when(o.store.MemoryBudget != 0 && o.store.MemoryBudget < leastBudget, "--memory-budget %d is less than the process takes by itself: give 32Mi or more, or leave it out for 3/4 of GOMEMLIMIT", o.store.MemoryBudget)
	if limit := debug.SetMemoryLimit(-1); limit != math.MaxInt64 {
		o.sink.MemoryLimit = limit
		o.store.MemoryBudget = cmp.Or(o.store.MemoryBudget, limit/4*3) // the rest is for stacks, for messages in work and for what the collector is behind
	}
	scaler := o.keda.complete(&o.api)
	wrong = append(wrong, o.api.Validate(), scaler, o.ingestTLS.complete(), o.peers.complete(o.api.Standalone), o.sink.Validate(), o.prom.complete())
	_, _, err := net.SplitHostPort(o.ingestAddress)
	wrong.when(err != nil, "--ingest-address: %w: give host:port", err)
	wrong = append(wrong, o.checkSense(), o.roomForMessages(), o.ownPorts())
	_, _, err = net.SplitHostPort(o.profilingAddress)
	wrong.when(o.profilingAddress != "" && err != nil, "--profiling-address: %w: give host:port", err)
	o.store.CountForeign = o.foreignPods == "count"
	wrong.when(!o.store.CountForeign && o.foreignPods != "refuse", "--foreign-pods %q is neither count nor refuse", o.foreignPods)
	wrong.when(o.logFormat != "text" && o.logFormat != "json", "--log-format %q is neither text nor json", o.logFormat)
	_, err = o.level()
	wrong.when(err != nil, "--log-level %q is none of debug, info, warn and error", o.logLevel)
	return errors.Join(wrong...)
}

// roomForMessages says what is wrong with a bound of unfinished messages below a few of the
// largest: their connections would be closed.
func (o *serveOptions) roomForMessages() error {
	const usual, several = 64 << 20, 4
	if largest := cmp.Or(o.sink.MaxMessageBytes, usual); o.sink.MaxPendingBytes > 0 && o.sink.MaxPendingBytes/several < largest {
		return fmt.Errorf("--max-pending-bytes %d is less than %d times --max-message-bytes, which is %d: raise the one or lower the other", o.sink.MaxPendingBytes, several, largest)
	}
	return nil
}

// usualHost is where ports are opened that no flag names.
func (o *serveOptions) usualHost() string {
	if o.api.Standalone {
		return "127.0.0.1"
	}
	return "0.0.0.0"
}

// ownPorts says which addresses meshpulse would take from itself.
func (o *serveOptions) ownPorts() error {
	https := net.JoinHostPort(cmp.Or(o.api.BindAddress, o.usualHost()), strconv.Itoa(o.api.SecurePort))
	var wrong complaints
	for _, pair := range [][4]string{
		{"--ingest-address", o.ingestAddress, "--bind-address and --secure-port", https},
		{"--profiling-address", o.profilingAddress, "--bind-address and --secure-port", https},
		{"--profiling-address", o.profilingAddress, "--ingest-address", o.ingestAddress},
		{"--prometheus-address", o.prom.address, "--bind-address and --secure-port", https},
		{"--prometheus-address", o.prom.address, "--ingest-address", o.ingestAddress},
		{"--prometheus-address", o.prom.address, "--profiling-address", o.profilingAddress},
		{"--keda-address", o.keda.address, "--bind-address and --secure-port", https},
		{"--keda-address", o.keda.address, "--ingest-address", o.ingestAddress},
		{"--keda-address", o.keda.address, "--profiling-address", o.profilingAddress},
		{"--keda-address", o.keda.address, "--prometheus-address", o.prom.address},
	} {
		wrong.when(sameAddress(pair[1], pair[3]), "%s %s is what meshpulse itself listens on (%s, %s): give them ports of their own", pair[0], pair[1], pair[2], pair[3])
	}
	return errors.Join(wrong...)
}

// sameAddress reports whether nobody can listen on both; a port of 0 is a free one.
func sameAddress(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	return hostA == hostB || allAddresses(hostA) || allAddresses(hostB)
}

// allAddresses reports whether a host to listen on stands for all addresses of the machine.
func allAddresses(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// loopback reports whether a host to listen on is reached from this machine alone.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

func (o *serveOptions) level() (level slog.Level, err error) {
	return level, level.UnmarshalText([]byte(o.logLevel))
}

// logger writes in the format of the flags, which complete has checked.
func (o *serveOptions) logger(w io.Writer) *slog.Logger {
	level, _ := o.level()
	h := &slog.HandlerOptions{Level: level}
	if o.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, h))
	}
	return slog.New(slog.NewTextHandler(w, h))
}
