// Package horizontal is the arithmetic of Kubernetes' HPA controller for external metrics: what one
// look makes of the metrics' values, within windows, policies and limits. [Settings.Decide] is a
// look, a [Past] what earlier ones left behind, [Permissive] compares scale-up rules with
// Kubernetes' defaults.
//
// It knows autoscaling/v2 types and numbers. It must not know where values come from, what they
// stand on, clients or clocks: time is an argument. The reference is pkg/controller/podautoscaler
// of k8s.io/kubernetes v1.37; the real controller wrote testdata/controller.jsonl.gz
// (bench/lab/controlplane), and the tests hold this package against it.
package horizontal
