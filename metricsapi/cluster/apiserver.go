package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	// apiRetry is how often an API server that cannot be reached is tried again.
	apiRetry = time.Second
	// apiPatience is how long an answer that says no is not believed: an API server that has just
	// started does not know its RBAC rules yet (seen: 12 s on a machine under load).
	apiPatience = time.Minute
)

// Await returns once the API server answers; its error is that the context has ended. A process
// that ended instead would be started again after pauses that grow to five minutes, long after the
// API server is back; this one takes flushes in meanwhile, and is not ready. What the API server
// refuses for good, or a certificate that is not its own, is left to be told by who asks next.
func Await(ctx context.Context, client kubernetes.Interface, log *slog.Logger) error {
	began, told := time.Now(), false
	return wait.PollUntilContextCancel(ctx, apiRetry, true, func(ctx context.Context) (bool, error) {
		// It is what authentication needs first (see admit).
		_, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, "extension-apiserver-authentication", metav1.GetOptions{})
		if err == nil || refusesForGood(err, time.Since(began)) {
			return true, nil
		}
		if !told {
			told = true
			log.Warn("the API server does not answer yet, waiting for it", "error", err)
		}
		return false, nil
	})
}

// refusesForGood says whether trying again is no use: the API server has said no for a while, or is
// another one.
func refusesForGood(err error, since time.Duration) bool {
	var certificate *tls.CertificateVerificationError
	var status apierrors.APIStatus
	switch {
	case errors.As(err, &certificate):
		return true
	case !errors.As(err, &status):
		return false // no answer at all
	}
	code := status.Status().Code
	return code >= 400 && code < 500 && code != 429 && since > apiPatience
}

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
