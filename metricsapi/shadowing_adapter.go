package metricsapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	emv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/fallback"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/shadow"
)

// shadowAccount is who asks the adapter of --shadow.
const shadowAccount = "meshpulse-shadow"

// getter gets what is at a path of an API server, or of an adapter behind its Service.
type getter interface {
	Get(ctx context.Context, path string) (status int, body []byte, err error)
}

// adapterShadow asks another adapter for HPAs' metrics as an HPA controller does: through the API
// server where the adapter has the API there, else at its Service.
type adapterShadow struct {
	to     fallback.Address
	api    *cluster.API
	served getter // through the API server, as the account
	direct *fallback.Adapter
	// ways are how each API's metrics are asked for, by the group; told anew at each round.
	ways atomic.Pointer[map[string]way]
}

// way is how an API is asked; why says why it is not.
type way struct {
	getter
	why error
}

// newAdapterShadow asks nothing yet.
func newAdapterShadow(o Options, api *cluster.API) (*adapterShadow, error) {
	to, err := fallback.ParseAddress(o.Shadow)
	if err != nil {
		return nil, err
	}
	namespace := cluster.OwnNamespace(o.Kubeconfig)
	if to.Namespace == namespace && to.Service == ownService {
		return nil, fmt.Errorf("%s is meshpulse's own Service, which would be compared with itself: give the other adapter's", o.Shadow)
	}
	tokens := cluster.Tokens{Client: api.Client, Namespace: namespace, Name: shadowAccount, Now: time.Now}
	x := &adapterShadow{to: to, api: api}
	if x.served, err = api.As(tokens); err != nil {
		return nil, err
	}
	if o.ShadowCAFile != "" {
		x.direct, err = fallback.New(fallback.Config{Address: to, CAFile: o.ShadowCAFile, Tokens: tokens, Dial: o.dialFallback, Log: o.Log})
		if err != nil {
			return nil, fmt.Errorf("--shadow-ca-file %w", err)
		}
	}
	return x, nil
}

// run keeps in step with the authority's file until the context ends.
func (x *adapterShadow) run(ctx context.Context) {
	if x.direct != nil {
		x.direct.Run(ctx)
	}
}

// begin looks who has the API now.
func (x *adapterShadow) begin(ctx context.Context) {
	group := emv1beta1.GroupName
	x.ways.Store(&map[string]way{group: x.wayTo(ctx, emv1beta1.SchemeGroupVersion.Version+"."+group)})
}

// wayTo is how the adapter is asked for what an APIService is of.
func (x *adapterShadow) wayTo(ctx context.Context, apiService string) way {
	ctx, cancel := context.WithTimeout(ctx, shadow.Deadline)
	defer cancel()
	a, err := x.api.APIService(ctx, apiService)
	switch {
	case err == nil && a.Namespace == x.to.Namespace && a.Service == x.to.Service:
		return way{getter: x.served}
	case x.direct != nil:
		return way{getter: x.direct}
	case err != nil:
		return way{why: fmt.Errorf("it cannot be told whether %s leads to %s, and without --shadow-ca-file it is not asked at its Service: %w", apiService, x.to, err)}
	}
	return way{why: fmt.Errorf("%s does not lead to %s, so that is asked at its Service: give --shadow-ca-file FILE, the authority of its certificate", apiService, x.to)}
}

// knows says whether a metric is one of the API that is asked.
func (x *adapterShadow) knows(w hpas.Metric) bool { return !w.Custom() }

// accepts says whether a metric may be asked for: by its name, and what is told of it the HPA
// itself shows.
func (x *adapterShadow) accepts(p *prepared, _ string) bool { return p.err == nil }

// read asks for a metric of an HPA as its controller does.
func (x *adapterShadow) read(ctx context.Context, h hpas.HPA, w hpas.Metric, _ *offer, at time.Time) (shadow.Reading, error) {
	ways := x.ways.Load()
	if ways == nil {
		return shadow.Reading{}, errors.New("nobody has looked yet who has its API")
	}
	by := (*ways)[emv1beta1.GroupName]
	if by.why != nil {
		return shadow.Reading{}, by.why
	}
	ctx, cancel := context.WithTimeoutCause(ctx, shadow.Deadline, fmt.Errorf("no answer within %s", shadow.Deadline))
	defer cancel()
	path := "/apis/" + emv1beta1.SchemeGroupVersion.String() + "/namespaces/" + url.PathEscape(h.Namespace) + "/" + url.PathEscape(w.Name) + "?labelSelector=" + url.QueryEscape(w.Selector.String())
	status, body, err := by.Get(ctx, path)
	switch {
	case err != nil && context.Cause(ctx) != nil:
		return shadow.Reading{}, context.Cause(ctx)
	case err != nil:
		return shadow.Reading{}, err
	}
	var list emv1beta1.ExternalMetricValueList
	if err := readMetrics(status, body, &list); err != nil {
		return shadow.Reading{}, err
	}
	values, times := make([]resource.Quantity, 0, len(list.Items)), make([]metav1.Time, 0, len(list.Items))
	for _, item := range list.Items {
		values, times = append(values, item.Value), append(times, item.Timestamp)
	}
	return sumOfMetrics(values, times, at)
}

// readMetrics reads an answer of a metrics API. What the adapter refuses to give a value of has
// none; of what could not be asked it is not known.
func readMetrics(status int, body []byte, into any) error {
	switch status {
	case http.StatusOK:
		if err := json.Unmarshal(body, into); err != nil {
			return fmt.Errorf("no list of metrics: %w", err)
		}
		return nil
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return fmt.Errorf("status %d: %.200q", status, body)
	}
	return fmt.Errorf("%w: status %d: %.200q", shadow.ErrNoValue, status, body)
}

// sumOfMetrics is what an HPA makes of items, and how old the newest is.
func sumOfMetrics(values []resource.Quantity, times []metav1.Time, at time.Time) (r shadow.Reading, err error) {
	if len(values) == 0 {
		return r, shadow.ErrNoValue
	}
	var newest time.Time
	for i, v := range values {
		r.Value += v.AsApproximateFloat64()
		if times[i].After(newest) {
			newest = times[i].Time
		}
	}
	if math.IsInf(r.Value, 0) {
		return shadow.Reading{}, shadow.ErrNoValue
	}
	if !newest.IsZero() { // of whole seconds, and by another clock
		r.Age = new(max(0, at.Sub(newest)))
	}
	return r, nil
}
