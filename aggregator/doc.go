// Package aggregator keeps what sidecars report in memory and answers queries over it.
//
// Data comes in through [Store.Connect] and [Stream.Commit], lives in one table a pod (a flush is a
// row, a series a column of a ring, see internal/ring), and goes out through [Store.Register] or
// [Store.Query] and [Query.Eval]. Beside a query, [Query.DetectSurges] looks at its newest flushes
// (surge.go), and [Store.Watch] tells which queries a flush belongs to as soon as it is committed
// (watch.go). Who counts for a pod is said in owner.go and identity.go, whose series a query sees
// in readable.go.
//
// In the steady state writers of different pods share no lock; a series that is new takes one, to
// be matched. Reading rows takes none, and what reads holds none that a writer of known series
// wants: [Store.Pod] looks its table up under the lock that pods take when they come, and those who
// ask one [SurgeDetector] wait for each other. A panic ends nothing but what it was in (faults.go).
//
// Answers equal Prometheus' but for the meant differences that differences.md lists.
//
// The package knows series, rings, windows and PromQL. It must not know gRPC, Envoy's wire format
// or Kubernetes.
//
// Times inside are unix milliseconds (int64); ranges are left-open, (mint, maxt], as in Prometheus
// since 3.0.
package aggregator
