package metricsapi

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/client-go/rest"
)

// unanswered is the way to an API server that takes requests and answers none.
type unanswered struct{ waited time.Duration } // by all requests together

func (u *unanswered) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	<-r.Context().Done()
	u.waited += time.Since(began)
	return nil, r.Context().Err()
}

// The first read of a scale has to find out what its kind is called, and no context bounds that.
func TestAScaleThatIsNotAnsweredEndsWithinARaise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var away unanswered
		s, err := newClusterScales(&rest.Config{Host: "http://192.0.2.1", Transport: &away})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.scale(t.Context(), "test", autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "podinfo"})
		if err == nil || away.waited == 0 || away.waited > raiseTimeout {
			t.Errorf("after %s: %v, want an error within %s", away.waited, err, raiseTimeout)
		}
	})
}
