// Package fallback asks the adapter that has the rest of a metrics API: another one of the cluster,
// behind its Service. A request that was let in here is passed on with a token of an account that
// may read metrics and nothing else; what it says comes back as it is.
//
// The package knows how the other adapter is reached and what it may be told. It must not know
// whose a metric is, nor HPAs, queries or series.
package fallback
