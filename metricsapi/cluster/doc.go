// Package cluster is what a Kubernetes API server tells and is told: the pods that exist
// (podindex.go, by what queries name; podaddress.go, by their addresses), HPAs as they come and go,
// the scales of what HPAs scale, which namespaces let others read them, and events.
//
// [Connect] makes the clients and asks nothing; each part is run, or asked, by itself. Caches are
// answered from whatever they heard last, so a [Freshness] says how long ago that was: what has not
// been in step for long is not to be believed, and its error says so. [Await] returns once the API
// server answers.
//
// The package knows Kubernetes' API and how Istio names pods (meshpod). It must not know queries,
// answers or what is decided by them.
package cluster
