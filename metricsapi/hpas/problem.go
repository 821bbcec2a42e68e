package hpas

import "fmt"

// Problem is something that the author of an HPA should know. It becomes a Warning event, once. The
// HPA still works as far as it can.
type Problem struct {
	// Reason is one of the constants below.
	Reason string `json:"reason"`
	// Message says what is wrong and the better form. It holds nothing that changes from one look
	// to the next, or the event would be repeated.
	Message string `json:"message"`
}

// Problemf is a problem with a formatted message.
func Problemf(reason, format string, args ...any) Problem {
	return Problem{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Reasons of Normal events: what was done.
const (
	ReasonSurgeScaled   = "SurgeScaled"   // a target was raised at a surge
	ReasonSurgeObserved = "SurgeObserved" // it would have been
)

// Reasons of problems.
const (
	ReasonBadAnnotation     = "BadAnnotation"       // a key or value that cannot be read
	ReasonBadTrigger        = "BadTrigger"          // metadata of a ScaledObject's trigger that cannot be served
	ReasonNeverWakes        = "NeverWakes"          // a ScaledObject that nothing wakes from zero
	ReasonIgnoredAnnotation = "IgnoredAnnotation"   // a key that is understood and has no effect here
	ReasonObjectNotServed   = "ObjectNotServed"     // an Object metric that is not served
	ReasonPodsNotServed     = "PodsNotServed"       // or a Pods metric
	ReasonSurgeNotServed    = "SurgeNotServed"      // surge settings that have no effect
	ReasonSurgeNotActed     = "SurgeNotActed"       // why a target is not raised at surges
	ReasonBadMetric         = "BadMetric"           // a metric of the spec that an API server would refuse
	ReasonBadQuery          = "BadQuery"            // the expression is refused
	ReasonTooMuch           = "TooMuch"             // a query that took more samples or time than one may
	ReasonNoQuery           = "NoQuery"             // a metric of the spec that nothing says how to compute
	ReasonUnusedQuery       = "UnusedQuery"         // a query that no metric of the spec asks for
	ReasonBadSelector       = "BadSelector"         // a metric selector that cannot be served
	ReasonUnknownLabel      = "UnknownLabel"        // a named metric's selector over a label that Istio does not set
	ReasonNotReported       = "NotReported"         // a metric or label in a query that no sidecar reports
	ReasonUnreportedValue   = "UnreportedValue"     // a label's value in a query that none of the pods meant reports
	ReasonUnreadMetrics     = "UnreadMetrics"       // pods that send Istio's metrics under names that are not read
	ReasonMuteSidecars      = "MuteSidecars"        // pods that exist and have not reported for long
	ReasonUnpointedSidecars = "UnpointedSidecars"   // a workload none of whose sidecars has ever reported
	ReasonRefusedSamples    = "RefusedSamples"      // samples that have been refused for long
	ReasonContestedPod      = "ContestedPod"        // two senders report as one pod
	ReasonRefusedSender     = "RefusedSender"       // a sender that is not the pod that it says it is
	ReasonForeignPods       = "ForeignPods"         // pods that the cluster does not know report as the query's
	ReasonDeafWatch         = "DeafWatch"           // the API server tells nothing of pods, HPAs or scales any more
	ReasonQueryConflict     = "QueryConflict"       // two HPAs, one query name, different queries
	ReasonSharedTarget      = "SharedTarget"        // HPAs that scale the same target
	ReasonSeveralSeries     = "SeveralSeries"       // the result has several series, which the HPA adds up
	ReasonLatencyAverage    = "LatencyAverageValue" // a latency against AverageValue
	ReasonRatioAverage      = "RatioAverageValue"   // a ratio against AverageValue
	ReasonLatencyStability  = "LatencyUnstable"     // a latency against Value, stabilised for less than its window
	ReasonMilliseconds      = "MillisecondsTarget"  // milliseconds against a target below 1
	ReasonNoisyRate         = "NoisyRate"           // irate
	ReasonCallersWord       = "CallersWord"         // a query that counts what callers say of others
	ReasonReadsBeyond       = "ReadsBeyond"         // a query that reads another namespace's series
	ReasonNotRead           = "NotRead"             // one that names a namespace which it does not read
	ReasonRawCounter        = "RawCounter"          // a counter without rate
	ReasonNoBuckets         = "NoBuckets"           // a quantile of buckets, aggregated without le
	ReasonOldVersion        = "OldVersion"          // autoscaling/v2beta1 or v2beta2 (files only)
	ReasonAPIServiceChanged = "APIServiceChanged"   // somebody else has written into the APIService that leads here
	ReasonUnknownField      = "UnknownField"        // a field that Kubernetes does not know (files only)
)

// Reasons are those of problems.
func Reasons() []string {
	return []string{
		ReasonBadAnnotation, ReasonBadTrigger, ReasonNeverWakes, ReasonIgnoredAnnotation, ReasonObjectNotServed, ReasonPodsNotServed, ReasonSurgeNotServed,
		ReasonSurgeNotActed, ReasonBadMetric, ReasonBadQuery, ReasonTooMuch, ReasonNoQuery, ReasonUnusedQuery,
		ReasonBadSelector, ReasonUnknownLabel, ReasonNotReported, ReasonUnreportedValue, ReasonUnreadMetrics,
		ReasonMuteSidecars, ReasonUnpointedSidecars, ReasonRefusedSamples, ReasonContestedPod, ReasonRefusedSender, ReasonForeignPods,
		ReasonDeafWatch, ReasonQueryConflict, ReasonSharedTarget, ReasonSeveralSeries, ReasonLatencyAverage,
		ReasonRatioAverage, ReasonLatencyStability, ReasonMilliseconds, ReasonNoisyRate, ReasonCallersWord, ReasonReadsBeyond, ReasonNotRead, ReasonRawCounter,
		ReasonNoBuckets, ReasonOldVersion, ReasonAPIServiceChanged, ReasonUnknownField,
	}
}
