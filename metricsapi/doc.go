// Package metricsapi serves the numbers: it reads which metrics HorizontalPodAutoscalers want, asks the store for them
// and answers Kubernetes' external metrics API.
//
// HPAs come from a source (source_cluster.go: the API server; source_files.go: a folder) as autoscaling/v2 objects. hpa.go
// reads metrics and problems out of one, catalog.go holds what all of them together ask for, answer.go says what may be
// answered, provider.go is where a request comes in and a number goes out. In a cluster hold.go keeps the replicas while what
// is known is incomplete: it compares an answer with the pods that exist (pods.go) and reads scales (scales.go). At a surge the
// answer is raised (surge.go) and, where an HPA asks for it, so is its target (act.go, with the arithmetic of package horizontal). What an
// author should know about an HPA is a [Problem] and becomes a Warning event (events.go).
//
// The package knows Kubernetes' types, the annotations' grammar and the rules of an answer. It must not know Envoy, gRPC
// or how samples are kept.
package metricsapi
