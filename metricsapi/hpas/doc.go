// Package hpas reads HorizontalPodAutoscalers: an HPA goes in, and out come the metrics that it
// wants, each with the PromQL that computes it, and the problems that its author should know.
//
// [Decode] takes HPAs out of files, of any version, and [DecodeScaledObjects] makes some of KEDA's
// ScaledObjects; [Vocabulary.Read] reads one: annotations
// (kube-metrics-adapter's and meshpulse's own), the metrics that need no PromQL (named.go), what
// the form of an expression tells of the number that it gives (traits.go, advice.go),
// metrics of the custom metrics API (custom.go),
// and what to write in place of what is not served (unserved.go, remedies.go). An [Expression] is
// PromQL parsed once, of [Part]s; a [Vocabulary] is what sidecars can send.
//
// The package knows Kubernetes' types and PromQL's grammar. It is pure: it reads no file, asks
// nobody and needs no store, so that a check of HPAs can be made without a cluster. It must not
// know what the store holds or what is answered.
package hpas
