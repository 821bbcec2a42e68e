// Package relay is what replicas of meshpulse say to each other: flushes that one of them has taken
// and others keep, questions to whoever has the answer, and that they live.
//
// A flush goes as it came, compressed, in a [Frame] that says which pod sent it and how long ago:
// whoever keeps it applies it as if the sidecar had sent it there, and needs neither the sender's
// clock nor anything of frames before. [Replicas] has one connection to each other replica, over
// which both ways of talking go, and listens for theirs.
//
// Taking flushes never waits for another replica: what does not fit into a replica's queue is
// dropped and counted, and is a gap of that pod there, as if the sidecar had missed a flush.
//
// Replicas trust each other wholly: what one says that a pod has proven counts at the other. So
// they talk over mutual TLS with certificates of an authority that is used for nothing else, and
// hold the name in them against their own ([TLS]); in plaintext on loopback alone.
//
// The package knows gRPC and pods as the store does. It must not know Envoy's wire format,
// Kubernetes, nor what is asked.
package relay
