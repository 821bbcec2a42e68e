package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/bench/sidecar"
	"github.com/meshpulse/meshpulse/bench/standalone"
)

// Envoys that evict what is not used for 5 s, and callers that come again when all is evicted: each
// finds its series gone, and each of its requests counts. One sidecar tells its eviction interval,
// the other does not.
func TestRequestsOfEvictedSeriesCount(t *testing.T) {
	t.Parallel()
	const callers, rounds = 60, 3
	hpas := t.TempDir()
	for _, pod := range []string{"podinfo-0", "podinfo-1"} {
		query(t, hpas, pod, fmt.Sprintf(`sum(max_over_time(istio_requests_total{pod=%q}[5m]))`, pod))
	}
	s := serve(t, standalone.Options{HPADir: hpas})
	evicting := func(pod string, mode func(*sidecar.Options)) *sidecar.Sidecar {
		return envoy(t, s, pod, func(o *sidecar.Options) {
			mode(o)
			o.EvictionInterval = 5 * time.Second
		})
	}
	both := map[string]*sidecar.Sidecar{
		"podinfo-0": evicting("podinfo-0", joined),
		"podinfo-1": evicting("podinfo-1", func(o *sidecar.Options) {
			labelled(o)
			o.Annotations = map[string]string{"sidecar.istio.io/statsEvictionInterval": ""}
		}),
	}
	for range rounds {
		for i := range callers {
			for _, e := range both {
				send(t, e, fmt.Sprintf("caller-%d", i), 40, 1)
			}
		}
		for pod, e := range both {
			await(t, "all is evicted by "+pod, func() error {
				left, err := e.RequestsTotal(t.Context())
				if err == nil && left > 0 {
					err = fmt.Errorf("it knows of %d requests", left)
				}
				return err
			})
		}
	}
	for pod := range both {
		const sent = rounds * callers
		await(t, "what was sent shows of "+pod, func() error {
			got, err := value(t.Context(), s, pod)
			if err == nil && (got < .98*sent || got > 1.02*sent) {
				err = fmt.Errorf("got %v, want %v within 2 %%", got, sent)
			}
			return err
		})
	}
}
