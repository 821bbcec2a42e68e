package metricsapi

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
)

// apiClock compares our clock with the API server's, which dates each of its answers. When a pod was made and when its deletion began are
// told by that clock, when its sidecar last reported by ours: behind it by a second, each deletion holds for a window.
type apiClock struct {
	next   http.RoundTripper
	now    func() time.Time
	behind prometheus.Gauge // seconds
}

// measureClock lets every client of the config compare clocks.
func measureClock(config *rest.Config, m *metrics, now func() time.Time) {
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &apiClock{next, now, m.clockBehind} })
}

// RoundTrip sends a request and looks at the date of the answer, which is cut to a second.
func (c *apiClock) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := c.next.RoundTrip(r)
	if err != nil {
		return answer, err
	}
	if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		c.behind.Set(date.Add(time.Second / 2).Sub(c.now()).Seconds())
	}
	return answer, nil
}

// WrappedRoundTripper is how client-go finds the transport itself.
func (c *apiClock) WrappedRoundTripper() http.RoundTripper { return c.next }
