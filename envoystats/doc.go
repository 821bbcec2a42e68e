// Package envoystats is the sink of Envoy's metrics service: the place where a flush comes in.
//
// A sidecar opens one StreamMetrics call ([Server], stream.go), says once who it is (node.go) and
// then sends a message or more a flush. A message is read in one pass over its wire bytes into an
// [aggregator.Batch] (scan.go, keys.go, values.go) and handed to the pod's [aggregator.Stream] when
// the whole of it is valid. Names and labels are decoded only when the store asks for a series that
// it has not seen (names.go).
//
// What a joined name says is partly chosen by whoever calls the pod. However it reads, the series
// is the reporting pod's: its namespace and pod are the stream's, and what a destination says of
// its own workload is held against the node (own.go). A caller can spoil source_… and
// destination_service… of what it is counted under, and make more series, up to the pod's limit.
// What a sidecar says of others, as reporter source, is its own word; so is everything where
// nothing proves who opens a stream.
//
// Over mutual TLS something does ([Mutual]): one port takes it and plaintext (handshake.go), a
// certificate is held against the node here and against the cluster's pod in the store
// (identity.go), and a connection lasts as long as its certificate (term.go). Where the port's own
// certificate comes from is not known here; package meshca asks the mesh's authority for one.
//
// The package knows gRPC, Envoy's wire format, Istio's names and node identity. It must not know
// Kubernetes, queries or how samples are kept. Facts about the wire come from Envoy
// (source/extensions/stat_sinks/metrics_service) and from recorded streams of it (testdata).
package envoystats
