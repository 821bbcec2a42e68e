// Package clients has the tests that other projects' clients, by their own code, make of meshpulse
// what metricsapi/canaries.md says: the manifests are read from there.
//
// Flagger's and Argo Rollouts' Prometheus providers and KEDA's Prometheus and external scalers are
// those of the released modules, each compiled into a small program below this folder. Flagger's
// provider externalmetrics is newer than the newest release that the module has: its requests are
// repeated as its code makes them (pkg/metrics/providers/externalmetrics.go).
package clients
