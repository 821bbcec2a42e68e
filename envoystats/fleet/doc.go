// Package fleet says which replicas of meshpulse keep what the pods of a namespace send, and which
// of them answers for it.
//
// What a namespace's pods send is kept whole by two replicas, its owners, so that either answers
// without the other. They are the two with the highest scores of a hash of the namespace and the
// replica's name, the second from another zone where there is one ([Owners]). That is a function of
// the list of replicas alone: nobody elects, and whoever has the same list says the same. With two
// replicas both own everything; with more each has its part.
//
// A replica that has begun beside others that are ready is [Joining]: it is written to, and not
// asked before it has the history that answers look back on. One that is about to end is [Leaving]:
// it goes on owning until it does, and who comes after it is written to meanwhile ([Keepers]).
//
// The package knows names and states. It must not know how replicas are found nor how they talk.
package fleet
