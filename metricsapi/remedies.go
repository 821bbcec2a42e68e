package metricsapi

import "fmt"

// What to write in place of a metric, a label or a value that no sidecar sends. The texts are for errors and events.

// remedyForMetric says what to do about a metric that is not Istio's.
func remedyForMetric(name string) string {
	return fmt.Sprintf("Istio does not set the metric %s by itself: check the spelling, or the Telemetry resource that adds it", name)
}

// remedyForLabel says what to do about a label that no series has.
func remedyForLabel(name string) string {
	return fmt.Sprintf("Istio does not set the label %s by itself: check the spelling, or the Telemetry resource that adds it", name)
}

// remedyForPods is for who divides by a number of pods.
const remedyForPods = "A sum needs no division by the pods with a target of type AverageValue, which divides by the replicas: leave it out. " +
	"Where the number itself is meant, take count(count by (pod) (istio_requests_total{…}))"
