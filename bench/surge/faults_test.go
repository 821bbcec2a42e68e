package surge

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// TestFaultsAreNoSurge: with the store's own timers, whatever goes wrong while the load stays as it
// is.
func TestFaultsAreNoSurge(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { faultsAreNoSurge(t, seed) })
		})
	}
}

func faultsAreNoSurge(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 5))
	flush := []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second}[r.IntN(4)]
	m, err := newMesh(Smooth, Load{{0, []float64{20, 200, 2000}[r.IntN(3)]}}, 1+r.IntN(12), flush, aggregator.SurgeConfig{}, r)
	if err != nil {
		t.Fatal(err)
	}
	m.pace = func(at time.Time) { time.Sleep(time.Until(at)); synctest.Wait() }
	done, told, err := m.faults(25)
	if err != nil {
		t.Fatal(err)
	}
	if len(told) > 0 {
		t.Errorf("seed %d, flush %s, %d pods: surges after %v, of %v", seed, flush, len(m.pods), told, done)
	}
	for _, p := range m.pods {
		p.stream.Close()
	}
	time.Sleep(time.Second)
}
