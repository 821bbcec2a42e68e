// Package metricsapi serves the numbers: it asks the store for the metrics that
// HorizontalPodAutoscalers want and answers Kubernetes' external metrics API.
//
// HPAs come from a source (package cluster: the API server; source_files.go: a folder) and are read
// by package hpas. catalog.go holds what all of them together ask for, answer.go says what may be
// answered (absent.go: of what is not there), provider.go is where a request comes in and a number
// goes out, custom.go where one of the custom metrics API does. Beside another adapter sharing.go
// says whose a metric is, and passing.go passes on what is not ours (package fallback). In a
// cluster hold.go keeps the replicas while what is known is incomplete: it compares an answer with
// the pods that exist and reads scales (package cluster). At a surge the answer is raised
// (surge.go) and, where an HPA asks for it, so is its target (act.go, with the arithmetic of
// package horizontal). What an author should know about an HPA is a [hpas.Problem] and becomes a
// Warning event, once (warner.go); [Lint] tells the same of files. Whose series the queries of a
// namespace may read is in reading.go. shadowing.go compares answers with another's (package
// shadow): a Prometheus' or an adapter's, each in a file of its own. explain.go says why an answer
// is what it is (account.go: how it came about, history.go: the last hour's, package explain: in
// words), ownapi.go serves that.
//
// The package knows the rules of an answer. It must not know Envoy, gRPC or how samples are kept;
// and what it knows none of hpas, cluster, fallback and horizontal may know.
package metricsapi
