package cluster

import (
	"net/http"
	"time"

	"k8s.io/client-go/rest"
)

// apiClock compares our clock with the API server's, which dates each of its answers. When a pod
// was made and when its deletion began are told by that clock, when its sidecar last reported by
// ours: behind it by a second, each deletion holds for a window.
type apiClock struct {
	next   http.RoundTripper
	now    func() time.Time
	behind func(seconds float64)
}

// measureClock lets every client of the config compare clocks.
func measureClock(config *rest.Config, behind func(seconds float64), now func() time.Time) {
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &apiClock{next, now, behind} })
}

// RoundTrip sends a request and looks at the date of the answer, which is cut to a second.
func (c *apiClock) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := c.next.RoundTrip(r)
	if err != nil {
		return answer, err
	}
	if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		c.behind(date.Add(time.Second / 2).Sub(c.now()).Seconds())
	}
	return answer, nil
}

// WrappedRoundTripper is how client-go finds the transport itself.
func (c *apiClock) WrappedRoundTripper() http.RoundTripper { return c.next }
