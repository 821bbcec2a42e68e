// Package fleet is a fleet of simulated sidecars: each is one HTTP/2 connection with one
// StreamMetrics stream, and sends what a recorded Envoy sent, with more label sets, advancing
// values and fresh timestamps.
//
// It is cheap on purpose, since it shares the machine with what it loads: messages are encoded
// once, and a flush is a copy of one in which fixed-width fields are patched. It knows the
// recording and gRPC, not what the receiver does with it.
package fleet

import (
	"errors"
	"fmt"
	"net"
	"time"
)

// Config is what a fleet is told. Target must be set; the zero value of another field means its
// default.
type Config struct {
	// Target is the receiver, host:port.
	Target string
	// CAFile (PEM) is what the receiver's certificate must come from; "" is plaintext.
	CAFile string
	// CertFile and KeyFile (PEM) are the certificate that all sidecars show, "" for none.
	CertFile, KeyFile string
	// Pods is how many sidecars there are (default 10), PodsPerWorkload how many share a workload,
	// and with it label sets (default 10).
	Pods, PodsPerWorkload int
	// LabelSets is how many label sets a sidecar reports, each a counter and three histograms
	// (default 20).
	LabelSets int
	// Busiest is how many requests the busiest of them has in a flush, where the others follow by
	// Zipf's law: a few are busy, most have a request now and then. 0: all move in every flush.
	Busiest int
	// Labels sends tags as labels (emit_tags_as_labels); by default they are joined in the name, as
	// stock Istio does.
	Labels bool
	// Interval is the flush interval (default 5s). The sidecars' phases are spread over it.
	Interval time.Duration
	// ReplacedPerMinute is how many pods are replaced in a minute by new ones: a last flush without
	// histograms, then another name. RestartedPerMinute is how many Envoys are killed and come back
	// under their name, their counters at 0.
	ReplacedPerMinute, RestartedPerMinute int
}

// Limits of a fleet: digits in patched names, file descriptors and memory of one machine.
const (
	maxPods      = 10_000
	maxBusiest   = 1_000_000
	maxLabelSets = 2_000 // a flush of them is 14 MB
)

// ErrConfig is wrapped by what Validate returns.
var ErrConfig = errors.New("fleet")

// Validate returns an error that names the first setting that cannot be used. It wraps ErrConfig.
func (c Config) Validate() error {
	_, _, err := net.SplitHostPort(c.Target)
	switch c = c.withDefaults(); {
	case err != nil:
		return fmt.Errorf("%w: target %q, must be HOST:PORT: %w", ErrConfig, c.Target, err)
	case c.Pods < 1 || c.Pods > maxPods:
		return fmt.Errorf("%w: %d pods, must be between 1 and %d", ErrConfig, c.Pods, maxPods)
	case c.LabelSets < 1 || c.LabelSets > maxLabelSets:
		return fmt.Errorf("%w: %d label sets, must be between 1 and %d", ErrConfig, c.LabelSets, maxLabelSets)
	case c.Busiest < 0 || c.Busiest > maxBusiest:
		return fmt.Errorf("%w: %d requests of the busiest label set, must be between 0 and %d", ErrConfig, c.Busiest, maxBusiest)
	case c.PodsPerWorkload < 1:
		return fmt.Errorf("%w: %d pods a workload, must be at least 1", ErrConfig, c.PodsPerWorkload)
	case c.Interval < 100*time.Millisecond:
		return fmt.Errorf("%w: flush interval %s, must be at least 100ms", ErrConfig, c.Interval)
	case c.ReplacedPerMinute < 0 || c.RestartedPerMinute < 0:
		return fmt.Errorf("%w: churn must not be negative", ErrConfig)
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Pods == 0 {
		c.Pods = 10
	}
	if c.PodsPerWorkload == 0 {
		c.PodsPerWorkload = 10
	}
	if c.LabelSets == 0 {
		c.LabelSets = 20
	}
	if c.Interval == 0 {
		c.Interval = 5 * time.Second
	}
	return c
}

// workload is the number of the workload that a pod of this number belongs to.
func (c Config) workload(pod int) int { return pod / c.PodsPerWorkload }
