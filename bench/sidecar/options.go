package sidecar

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"time"
)

// Reporter is Istio's reporter label: which side of a request a sidecar stands on.
type Reporter string

// A destination sidecar stands in front of its own workload, a source sidecar (a client's, or a
// gateway) before others'.
const (
	Destination Reporter = "destination"
	Source      Reporter = "source"
)

// defaultFlush is Istio's.
const defaultFlush = 5 * time.Second

// TLS is what Istio renders of tlsSettings with the mode ISTIO_MUTUAL (istio: pkg/bootstrap/option,
// tlsContextConvert).
type TLS struct {
	// Socket is where SDS hands out the workload's certificate and the roots.
	Socket string
	// Peers are the identities that the sink may have (subjectAltNames); without any it may be any
	// workload of the mesh.
	Peers []string
}

// Options is what a sidecar is and how it reports. Dir, Pod, Namespace, Workload, Address and Sink
// must be set.
type Options struct {
	// Binary is the Envoy to run (default: EnvoyBinary).
	Binary string
	// Dir takes the bootstrap and the log.
	Dir string

	// Pod, Namespace and Workload are the pod's identity in the node.
	Pod, Namespace, Workload string
	// ServiceAccount is whom the node says that the pod runs as (default "default").
	ServiceAccount string
	// Version is the label version and the canonical revision (default "v1").
	Version string
	// Labels are the pod's labels; app, version and Istio's canonical ones are added where they are
	// missing.
	Labels map[string]string
	// Annotations are the pod's annotations, which Istio sends as node metadata; those that tell a
	// flush interval other than Istio's 5s and an eviction interval are added where they are
	// missing. An empty value leaves one out. sidecar.istio.io/statsInclusionRegexps has stats of
	// Envoy's own sent, too.
	Annotations map[string]string
	// Address is the pod's own, such as 127.97.0.1; its ports bind there.
	Address string
	// InboundPort and AdminPort are the ports on Address; 0 takes free ones, see Sidecar.Address
	// and Sidecar.AdminURL.
	InboundPort, AdminPort int
	// Upstreams are where requests go, host:port: the app, or for a gateway the sidecars behind it.
	// See SetUpstreams.
	Upstreams []string

	// Reporter is the side it stands on (default Destination).
	Reporter Reporter
	// DestinationWorkload is whom a Source sidecar calls, with DestinationNamespace (default
	// Namespace) and DestinationVersion (default "v1"). A Destination sidecar's destination is
	// itself.
	DestinationWorkload, DestinationNamespace, DestinationVersion string
	// Tags replaces the values of Istio's tags by name: an Envoy format string, such as
	// %REQ(x-app)%. By default a Destination sidecar's source_workload, source_workload_namespace
	// and source_principal come from the request headers x-source-workload, x-source-namespace and
	// x-source-principal, or are unknown.
	Tags map[string]string
	// Duration is the format of a request's duration in milliseconds (default %DURATION%).
	// %REQ(x-duration)% makes the histogram exact.
	Duration string

	// Bounds are the histograms' upper bounds in milliseconds (default Istio's), as
	// sidecar.istio.io/statsHistogramBuckets sets.
	Bounds []float64
	// Answers lets Envoy answer requests by itself, with 200 and nothing: no Upstreams are asked.
	Answers bool

	// Sink is the receiver of the metrics, host:port.
	Sink string
	// TLS is how the sidecar and the sink prove themselves to each other (default: plaintext).
	TLS *TLS
	// FromAddress has the stream to the sink come from Address, as it does in a cluster.
	FromAddress bool
	// FlushInterval is the time between two flushes (default 5s).
	FlushInterval time.Duration
	// EvictionInterval lets unused stats go (default never); a multiple of FlushInterval.
	EvictionInterval time.Duration
	// TagsAsLabels sends tags as labels; by default they are joined into the name, as Istio's own
	// wiring does.
	TagsAsLabels bool
	// HistogramOnly leaves the summaries out.
	HistogramOnly bool
	// BatchSize splits a flush into messages of so many families (default 0: one message).
	BatchSize int
	// CountersAsDeltas reports counters as the interval since the last flush.
	CountersAsDeltas bool

	// Concurrency is Envoy's number of worker threads (default 1).
	Concurrency int
}

// Validate says which option is missing or wrong.
func (o Options) Validate() error {
	for _, required := range []struct{ name, value string }{
		{"Dir", o.Dir},
		{"Pod", o.Pod},
		{"Namespace", o.Namespace},
		{"Workload", o.Workload},
		{"Address", o.Address},
		{"Sink", o.Sink},
	} {
		if required.value == "" {
			return fmt.Errorf("sidecar option %s is not set", required.name)
		}
	}
	if _, _, err := net.SplitHostPort(o.Sink); err != nil {
		return fmt.Errorf("sidecar option Sink: %w", err)
	}
	if o.Reporter != Destination && o.Reporter != Source {
		return fmt.Errorf("sidecar option Reporter: %q is neither destination nor source", o.Reporter)
	}
	if o.Reporter == Source && o.DestinationWorkload == "" {
		return errors.New("sidecar option DestinationWorkload is not set")
	}
	return nil
}

// IstioBounds are the upper bounds of Istio's histograms.
func IstioBounds() []float64 {
	return []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}
}

func (o Options) withDefaults() Options {
	o.Version = cmp.Or(o.Version, "v1")
	o.ServiceAccount = cmp.Or(o.ServiceAccount, "default")
	o.Reporter = cmp.Or(o.Reporter, Destination)
	if o.Reporter == Destination {
		o.DestinationWorkload, o.DestinationNamespace, o.DestinationVersion = o.Workload, o.Namespace, o.Version
	}
	o.DestinationNamespace = cmp.Or(o.DestinationNamespace, o.Namespace)
	o.DestinationVersion = cmp.Or(o.DestinationVersion, "v1")
	o.Duration = cmp.Or(o.Duration, "%DURATION%")
	o.FlushInterval = cmp.Or(o.FlushInterval, defaultFlush)
	o.Concurrency = cmp.Or(o.Concurrency, 1)
	if o.Bounds == nil {
		o.Bounds = IstioBounds()
	}
	labels := map[string]string{
		"app":                                 o.Workload,
		"version":                             o.Version,
		"service.istio.io/canonical-name":     o.Workload,
		"service.istio.io/canonical-revision": o.Version,
	}
	maps.Copy(labels, o.Labels)
	o.Labels = labels
	annotations := map[string]string{}
	if o.FlushInterval != defaultFlush {
		annotations["sidecar.istio.io/statsFlushInterval"] = o.FlushInterval.String()
	}
	if o.EvictionInterval != 0 {
		annotations["sidecar.istio.io/statsEvictionInterval"] = o.EvictionInterval.String()
	}
	maps.Copy(annotations, o.Annotations)
	maps.DeleteFunc(annotations, func(_, told string) bool { return told == "" })
	o.Annotations = annotations
	return o
}
