package metricsapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	genericrequest "k8s.io/apiserver/pkg/endpoints/request"
	emv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	adapterserver "sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver"

	"github.com/meshpulse/meshpulse/metricsapi/fallback"
)

// What became of a request that is not answered here: the closed set of the outcome label of
// meshpulse_metricsapi_passed_total.
const (
	passedOK        = "ok"        // the other adapter answered
	passedError     = "error"     // it answered with an error, which is the caller's answer
	passedNoAnswer  = "no_answer" // it did not, or not in time
	passedUndecided = "undecided" // not passed: it is not known whose the metric is
	passedCircle    = "circle"    // not passed: it had been passed on from here already
)

func passedOutcomes() []string {
	return []string{passedOK, passedError, passedNoAnswer, passedUndecided, passedCircle}
}

// passing passes on what is not answered here. It stands behind the server's own authentication and
// authorization, as answers do.
type passing struct {
	to      *fallback.Adapter
	catalog *catalog
	metrics *metrics
	own     string           // the namespace of meshpulse's own Service
	changed prometheus.Gauge // whether somebody else has changed the APIService
	// known says why it is not known whose a metric is, nil while it is.
	known func() error

	discovery theirNames
}

// over is what answers: ours what is meshpulse's, the other adapter the rest.
func (p *passing) over(ours http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := genericrequest.RequestInfoFrom(r.Context())
		if !ok || !asksForMetric(r, info) {
			ours.ServeHTTP(w, r)
			return
		}
		if err := p.known(); err != nil {
			p.refuse(w, r, passedUndecided, fmt.Errorf("it is not known yet whose it is, meshpulse's or that of %s: %w", p.to.Address(), err))
			return
		}
		selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
		if err != nil || info.Name == "" && p.catalog.current.Load().ours(info.Namespace, info.Resource, selector) {
			ours.ServeHTTP(w, r) // a selector that cannot be read is nobody's, and told
			return
		}
		p.pass(w, r)
	})
}

// asksForMetric says whether a request is for a metric of the external metrics API. One whose path
// others might read otherwise than the authorization has is not.
func asksForMetric(r *http.Request, info *genericrequest.RequestInfo) bool {
	return info.IsResourceRequest && info.APIGroup == emv1beta1.GroupName && r.Method == http.MethodGet &&
		(info.Verb == "get" || info.Verb == "list") && path.Clean(r.URL.Path) == r.URL.Path
}

func (p *passing) pass(w http.ResponseWriter, r *http.Request) {
	if fallback.Circles(r) {
		p.refuse(w, r, passedCircle, fmt.Errorf("it has been passed on from here to %s, which leads back: give --fallback the other adapter's own Service", p.to.Address()))
		return
	}
	start := time.Now()
	status, err := p.to.Pass(w, r, userOf(r.Context()))
	p.metrics.passedDuration.Observe(time.Since(start).Seconds())
	outcome := passedOK
	switch {
	case err != nil:
		outcome = passedNoAnswer
	case status >= http.StatusBadRequest:
		outcome = passedError
	}
	p.metrics.passed.WithLabelValues(outcome).Inc()
}

func (p *passing) refuse(w http.ResponseWriter, r *http.Request, outcome string, err error) {
	p.metrics.passed.WithLabelValues(outcome).Inc()
	failPassed(w, r, err)
}

// noAnswer is the answer to what the other adapter does not answer.
func (p *passing) noAnswer(w http.ResponseWriter, r *http.Request, err error) {
	failPassed(w, r, fmt.Errorf("it is not meshpulse's, and %s does not answer: %w", p.to.Address(), err))
}

func failPassed(w http.ResponseWriter, r *http.Request, err error) {
	info, _ := genericrequest.RequestInfoFrom(r.Context())
	refused := refuse(outcomeElsewhere, "metric %s in namespace %s: %v", info.Resource, info.Namespace, err)
	responsewriters.ErrorNegotiated(toStatus(refused), adapterserver.Codecs, emv1beta1.SchemeGroupVersion, w, r)
}

// discoveryDeadline is how long the discovery document waits for the other adapter's: the API
// server takes an API for gone whose own is not there within 5 s.
const discoveryDeadline = time.Second

// theirNames are the names that the other adapter's discovery document has.
type theirNames struct {
	mu    sync.Mutex
	at    time.Time
	names []string
}

// names are those of the other adapter's metrics, as it last told them.
func (p *passing) names() []string {
	d := &p.discovery
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.at) < discoveryDeadline { // the plain and the aggregated form are asked for together
		return d.names
	}
	ctx, cancel := context.WithTimeout(context.Background(), discoveryDeadline)
	defer cancel()
	status, body, err := p.to.Get(ctx, "/apis/"+emv1beta1.SchemeGroupVersion.String())
	d.at = time.Now()
	var list metav1.APIResourceList
	if err != nil || status != http.StatusOK || json.Unmarshal(body, &list) != nil {
		return d.names
	}
	d.names = nil
	for _, r := range list.APIResources {
		d.names = append(d.names, r.Name)
	}
	slices.Sort(d.names)
	return d.names
}
