package surge

import (
	"math"
	"testing"
	"time"
)

func TestSettings(t *testing.T) {
	for _, c := range []Config{{Window: time.Millisecond}, {Window: time.Minute}, {Window: -time.Second}, {Ratio: 1}, {Ratio: -1}, {Ratio: math.NaN()}, {Ratio: math.Inf(1)}} {
		if c.Validate() == nil {
			t.Errorf("%+v is taken", c)
		}
	}
	for _, c := range []Config{{}, {Window: time.Second, Ratio: 1.1}, {Window: 30 * time.Second}} {
		if err := c.Validate(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
