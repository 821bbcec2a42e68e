package surge

import (
	"cmp"
	"fmt"
	"math"
	"time"
)

// Config is what a detector can be told. The zero value of a field means its default.
type Config struct {
	// Window is how much of the newest past is tested: intervals of one flush, two flushes, … up to
	// it, at least one flush (default 10s).
	Window time.Duration
	// Ratio is how far above its baseline a rate must be to be a surge (default 1.5).
	Ratio float64
}

const (
	// defaultWindow is two flushes of Istio's default: a step begins within the first of them.
	defaultWindow = 10 * time.Second
	// defaultRatio is above 1.4, below which load that moves between pods is taken for a surge
	// (bench/surge).
	defaultRatio = 1.5
	// maxWindow keeps the tested interval well below the minute that it is compared with.
	maxWindow = 30 * time.Second
)

// WithDefaults returns the settings in full.
func (c Config) WithDefaults() Config {
	c.Window, c.Ratio = cmp.Or(c.Window, defaultWindow), cmp.Or(c.Ratio, defaultRatio)
	return c
}

// Validate says which setting is wrong, and what it may be.
func (c Config) Validate() error {
	c = c.WithDefaults()
	switch {
	case c.Window < time.Second || c.Window > maxWindow:
		return fmt.Errorf("surge window %s: it has to be from 1s to %s", c.Window, maxWindow)
	case !(c.Ratio > 1) || math.IsInf(c.Ratio, 0):
		return fmt.Errorf("surge ratio %g: it has to be a number above 1", c.Ratio)
	}
	return nil
}
