package metricsapi

import (
	"context"
	"fmt"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	genericrequest "k8s.io/apiserver/pkg/endpoints/request"
	cmv1beta2 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
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
	// custom: the custom metrics API is served, and so passed on too.
	custom bool
	theirs *theirs
	// elsewhere says whether another replica knows that a metric is meshpulse's.
	elsewhere func(context.Context, question) bool
}

// over is what answers: ours what is meshpulse's, the other adapter the rest.
func (p *passing) over(ours http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := genericrequest.RequestInfoFrom(r.Context())
		if !ok || !p.asksForMetric(r, info) {
			ours.ServeHTTP(w, r)
			return
		}
		if err := p.known(); err != nil {
			p.refuse(w, r, passedUndecided, fmt.Errorf("it is not known yet whose it is, meshpulse's or that of %s: %w", p.to.Address(), err))
			return
		}
		if p.isOurs(r, info) {
			ours.ServeHTTP(w, r)
			return
		}
		p.pass(w, r)
	})
}

// asksForMetric says whether a request is for a metric of an API that is served. One whose path
// others might read otherwise than the authorization has is not.
func (p *passing) asksForMetric(r *http.Request, info *genericrequest.RequestInfo) bool {
	if !info.IsResourceRequest || r.Method != http.MethodGet || info.Verb != "get" && info.Verb != "list" || path.Clean(r.URL.Path) != r.URL.Path {
		return false
	}
	switch info.APIGroup {
	case emv1beta1.GroupName:
		return true
	case cmv1beta2.GroupName: // a metric of an object, or of the namespace itself
		return p.custom && (len(info.Parts) == 3 || len(info.Parts) == 2 && ofNamespace(info))
	}
	return false
}

// ofNamespace says whether a metric of the custom metrics API describes the namespace itself.
func ofNamespace(info *genericrequest.RequestInfo) bool {
	return info.Namespace != "" && info.Resource == "metrics"
}

// isOurs says whether a request for a metric is answered here. A selector that cannot be read is
// nobody's, and is told here. Where no HPA that is known here says whose it is, another replica may
// know one.
func (p *passing) isOurs(r *http.Request, info *genericrequest.RequestInfo) bool {
	s, parameter := p.catalog.current.Load(), "labelSelector"
	ofObject := info.APIGroup == cmv1beta2.GroupName
	if ofObject {
		parameter = "metricLabelSelector"
	}
	selector, err := labels.Parse(r.URL.Query().Get(parameter))
	if err != nil {
		return true
	}
	q := question{Namespace: info.Namespace, Metric: info.Resource, Selector: selector.String()}
	var ours, theirs bool
	if ofObject {
		ours = s.oursOfObject(info.Namespace, info.Resource, info.Name, info.Subresource, selector)
		theirs = ofNamespace(info) || s.theirsOfObject(info.Namespace, info.Resource, info.Name, info.Subresource, selector)
		q.Metric, q.Custom = info.Subresource, &customQuestion{Of: info.Resource, Object: info.Name}
		if info.Name == "*" {
			q.Custom.Object, q.Custom.Pods = "", r.URL.Query().Get("labelSelector")
		}
	} else {
		ours = s.ours(info.Namespace, info.Resource, selector)
		theirs = info.Name != "" || s.theirs(info.Namespace, info.Resource, selector)
	}
	return !theirs && (ours || p.elsewhere(r.Context(), q))
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
	refused := refuse(outcomeElsewhere, "metric %s in namespace %s: %v", strings.Join(info.Parts, "/"), info.Namespace, err)
	responsewriters.ErrorNegotiated(toStatus(refused), adapterserver.Codecs, emv1beta1.SchemeGroupVersion, w, r)
}
