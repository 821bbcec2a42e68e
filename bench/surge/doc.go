// Package surge measures what the store's surge detector does with traffic of many kinds: how often
// it is wrong, how soon it is right, and by how much too high. Simulated pods commit to a real
// aggregator.Store, and a real detector is asked.
//
// It knows the store's commits and queries; it must not know gRPC, Kubernetes or files of results.
package surge
