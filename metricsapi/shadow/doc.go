// Package shadow compares what is answered here with what another says of the same at the same
// instant, a Prometheus or an adapter, without anything going by it: how far the two are apart, how
// old each one's newest sample is, and how many replicas each would ask for.
//
// The package knows how a Prometheus is asked, what two readings are to each other and how much of
// that is remembered. It must not know HPAs, the store or why an answer is what it is.
package shadow
