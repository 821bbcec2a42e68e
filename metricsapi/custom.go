package metricsapi

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	adapter "sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// customProvider is where a request of the custom metrics API comes in and the number goes out. A
// metric of an object is answered as an external one is. Of pods each is answered for by itself,
// and one of which not all is known is left out: an HPA controller then reckons with as much as its
// target where it would scale down, and with nothing where it would scale up.
type customProvider struct {
	*provider
	// pods returns those of a namespace that a label selector means.
	pods func(ctx context.Context, namespace, selector string) ([]cluster.SelectedPod, error)
}

var _ adapter.CustomMetricsProvider = (*customProvider)(nil)

// custom is nil where the custom metrics API is not served.
func (s *Server) custom() adapter.CustomMetricsProvider {
	if s.provider.custom == nil {
		return nil
	}
	return s.provider.custom
}

// customName is resource/metric of a metric by its path.
func customName(name string) string {
	parts := strings.Split(name, "/")
	return parts[0] + "/" + parts[len(parts)-1]
}

// ListAllMetrics names what HPAs ask for now, and what the adapter has that has the rest: the
// discovery document.
func (c *customProvider) ListAllMetrics() []adapter.CustomMetricInfo {
	names := c.catalog.current.Load().customs
	infos := make([]adapter.CustomMetricInfo, len(names))
	for i, name := range names {
		of, metric, _ := strings.Cut(name, "/")
		infos[i] = adapter.CustomMetricInfo{GroupResource: schema.ParseGroupResource(of), Namespaced: true, Metric: metric}
	}
	if c.theirs != nil {
		infos = append(infos, c.theirs.ofObjects()...)
	}
	return sortedInfos(infos)
}

// GetMetricByName answers for one object.
func (c *customProvider) GetMetricByName(ctx context.Context, of types.NamespacedName, info adapter.CustomMetricInfo, selector labels.Selector) (*custom_metrics.MetricValue, error) {
	var value *custom_metrics.MetricValue
	err := c.counted(ctx, func() *refusal {
		s := c.getCustom(ctx, customRequest{namespace: of.Namespace, of: info.GroupResource, object: of.Name, metric: info.Metric, selector: selector})
		if s.refused == nil {
			value = &s.custom[0]
		}
		return s.refused
	})
	return value, err
}

// GetMetricBySelector answers for each pod of a selector.
func (c *customProvider) GetMetricBySelector(ctx context.Context, namespace string, pods labels.Selector, info adapter.CustomMetricInfo, selector labels.Selector) (*custom_metrics.MetricValueList, error) {
	list := &custom_metrics.MetricValueList{}
	err := c.counted(ctx, func() *refusal {
		s := c.getCustom(ctx, customRequest{namespace: namespace, of: info.GroupResource, pods: pods, metric: info.Metric, selector: selector})
		list.Items = s.custom
		return s.refused
	})
	return list, err
}

// counted is what comes before and after an answer.
func (c *customProvider) counted(ctx context.Context, answer func() *refusal) error {
	leave, refused := c.enter(ctx)
	if refused != nil {
		return toStatus(refused)
	}
	defer leave()
	start := time.Now()
	refused = answer()
	c.metrics.duration.Observe(time.Since(start).Seconds())
	if refused != nil {
		c.metrics.answers.WithLabelValues(refused.outcome).Inc()
		return toStatus(refused)
	}
	c.metrics.answers.WithLabelValues(outcomeOK).Inc()
	return nil
}

// findCustom returns what answers a request for a metric by its path: an HPA's query, else a metric
// that needs no PromQL. The caller releases the query.
func (c *catalog) findCustom(namespace, path string, selector labels.Selector, named func() (string, error)) (*prepared, *offer, *refusal) {
	for {
		o := c.current.Load().offers[offerKey{namespace, path, hpas.Canonical(selector)}]
		if o == nil {
			break
		}
		if o.prepared.acquire() {
			return o.prepared, o, nil
		}
		// Closed since the snapshot was loaded: there is a newer one.
	}
	if _, ok := hpas.Named(path[strings.LastIndexByte(path, '/')+1:]); !ok {
		return nil, nil, refuse(outcomeUnknown, "no HPA in namespace %s has a query for %s: check its annotations and the Warning events on it", namespace, path)
	}
	expr, err := named()
	if err != nil {
		return nil, nil, refuse(outcomeBadSelector, "metric %s in namespace %s: %v", path, namespace, err)
	}
	return c.adhoc.acquire(namespace, expr), nil, nil
}

// customRequest is what is asked for: a metric of an object, or of each pod that a selector means.
type customRequest struct {
	namespace string
	of        schema.GroupResource
	object    string          // "" where it is pods
	pods      labels.Selector // where it is not an object
	metric    string
	selector  labels.Selector
}

func (r customRequest) path() string {
	if r.object != "" {
		return hpas.ObjectMetric(r.of, r.object, r.metric)
	}
	return hpas.PodsMetric(r.metric)
}

// find returns what answers a request. The caller releases it.
func (c *customProvider) find(r customRequest) (*prepared, *offer, *refusal) {
	return c.catalog.findCustom(r.namespace, r.path(), r.selector, func() (expr string, err error) {
		if r.object != "" {
			expr, _, err = hpas.ObjectExpression(r.metric, r.namespace, r.of, r.object, r.selector)
		} else {
			expr, _, err = hpas.PodsExpression(r.metric, r.namespace, r.selector)
		}
		return expr, err
	})
}

// sayCustom is what this replica knows of a request.
func (c *customProvider) sayCustom(ctx context.Context, r customRequest) said {
	if r.object != "" {
		return c.object(ctx, r)
	}
	return c.each(ctx, r)
}

func (c *customProvider) object(ctx context.Context, r customRequest) said {
	query, o, refused := c.find(r)
	if refused != nil {
		return notFound(refused)
	}
	defer query.release()
	v, answer, refused := c.answer(ctx, r.path(), r.namespace, o, query, c.now())
	s := said{refused: refused, incomplete: c.rules.incomplete(v, answer, refused), unasked: o == nil}
	if s.unasked { // its HPA may have a query for this name, or have it divided
		s.incomplete = cmp.Or(s.incomplete, "no HPA that is known here asks for it")
	}
	if refused != nil {
		return s
	}
	milli := v.sum()
	if o != nil && o.perReplica {
		ready, err := c.ready(ctx, o.owner)
		if err != nil {
			return said{refused: refuse(outcomeFailed, "%s: %v", subjectOf(r.path(), r.namespace, o), err)}
		}
		milli = int64(math.Round(float64(milli) / float64(ready)))
	}
	described := custom_metrics.ObjectReference{Namespace: r.namespace, Name: r.object, Kind: kindOf(o, r.of)}
	s.custom = []custom_metrics.MetricValue{customValue(described, r.metric, r.selector, milli, answer.Newest, answer.Window)}
	return s
}

// kindOf is the kind of a described object, as the HPA says it.
func kindOf(o *offer, r schema.GroupResource) string {
	if o != nil {
		for _, m := range o.owner.Spec.Metrics {
			if m.Object != nil && strings.HasSuffix(o.written, " of "+m.Object.DescribedObject.Kind+" "+m.Object.DescribedObject.Name) {
				return m.Object.DescribedObject.Kind
			}
		}
	}
	kinds := map[string]string{"pods": "Pod", "services": "Service", "deployments": "Deployment", "statefulsets": "StatefulSet", "daemonsets": "DaemonSet", "replicasets": "ReplicaSet", "rollouts": "Rollout"}
	return kinds[r.Resource]
}

// ready counts the pods of an HPA's target that are, as the controller does that multiplies by
// them.
func (c *customProvider) ready(ctx context.Context, a *hpas.Wants) (int, error) {
	target := fmt.Sprintf("%s %s", a.Spec.ScaleTargetRef.Kind, a.Spec.ScaleTargetRef.Name)
	scale, err := c.rules.holder.scales.Recent(ctx, a.Namespace, a.Spec.ScaleTargetRef)
	if err != nil {
		return 0, fmt.Errorf("the pods of %s, by which it is divided, are not known: %w", target, err)
	}
	pods, err := c.pods(ctx, a.Namespace, scale.Status.Selector)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, p := range pods {
		if p.Ready {
			n++
		}
	}
	if n == 0 {
		return 0, fmt.Errorf("none of the %d pods of %s is ready, and it is divided by those", len(pods), target)
	}
	return n, nil
}

// each answers for each pod. It is incomplete where one is left out of which more may be known.
func (c *customProvider) each(ctx context.Context, r customRequest) said {
	if (r.of != schema.GroupResource{Resource: "pods"}) {
		return said{refused: refuse(outcomeBadSelector, "metric %s of %s in namespace %s: name one of them, or take pods", r.metric, r.of, r.namespace)}
	}
	query, o, refused := c.find(r)
	if refused != nil {
		return notFound(refused)
	}
	defer query.release()
	subject := subjectOf(r.path(), r.namespace, o)
	selected, err := c.pods(ctx, r.namespace, r.pods.String())
	if err != nil {
		return said{refused: refuse(outcomeFailed, "%s: %v", subject, err)}
	}
	look, refused := c.rules.lookAtEach(ctx, subject, query, c.now())
	if refused != nil {
		return said{refused: refused, incomplete: c.rules.incomplete(verdict{}, aggregator.Answer{}, refused)}
	}
	if o != nil {
		for _, problem := range c.rules.remarks(o, query, look.answer) {
			c.tell(o, problem)
		}
	}
	s, why := said{custom: []custom_metrics.MetricValue{}}, "there is none"
	for _, p := range selected {
		milli, newest, missing := look.of(c.catalog.store, r.namespace, p)
		if _, seen := look.values[p.Name]; missing == "" && !seen && !c.meant(query, r.namespace, p.Name) {
			missing = "is none of the pods whose requests the selector means: check it"
		}
		if missing != "" {
			if why = p.Name + " " + missing; missing != noneOfIt {
				s.incomplete = why
			}
			continue
		}
		described := custom_metrics.ObjectReference{Namespace: r.namespace, Name: p.Name, Kind: "Pod", APIVersion: "v1"}
		s.custom = append(s.custom, customValue(described, r.metric, r.selector, milli, newest, look.answer.Window))
	}
	if len(s.custom) == 0 {
		return said{incomplete: s.incomplete, refused: refuse(outcomeNoSidecar, "%s: nothing is known in full of any of the %d pods with labels %q: %s", subject, len(selected), r.pods, why)}
	}
	return s
}

// meant says whether a pod can have what a query selects: one that cannot is not without requests.
func (c *customProvider) meant(query *prepared, namespace, name string) bool {
	pod, known := c.rules.holder.pods.Get(namespace, name)
	return !known || !query.Waypoint() && (!query.namesPods() || query.query.Selects(&pod.Identity))
}

// lookAtPods is what a query has of each pod at an instant.
type lookAtPods struct {
	*prepared
	at      time.Time
	answer  aggregator.Answer
	values  map[string]float64 // by pod
	started time.Time
	idle    bool // nothing has moved for as long as it takes to say that there are no requests
}

// lookAtEach evaluates an expression of each pod. Of a pod that is late the larger of what is seen
// and what was at the newest time that all have covered counts. What no pod can have is refused: a
// pod that has no value of it would be taken for one without requests.
func (r rules) lookAtEach(ctx context.Context, subject string, p *prepared, at time.Time) (*lookAtPods, *refusal) {
	if p.err != nil {
		return nil, refuse(outcomeBadQuery, "%s: %v", subject, p.err)
	}
	answer, err := p.query.Eval(ctx, at)
	if err != nil {
		return nil, refuse(outcomeFailed, "%s: %v", subject, err)
	}
	if why, _ := r.missing(p, answer, p.absent(answer)); why != "" {
		return nil, refuse(outcomeNoValue, "%s: %s: %s", subject, why, p.Text)
	}
	if refused := shortWindow(subject, p, answer); refused != nil {
		return nil, refused
	}
	look := &lookAtPods{prepared: p, at: at, answer: answer, values: map[string]float64{}, started: r.started}
	look.idle = !answer.Moved && at.Sub(r.started) >= r.retention
	look.add(answer)
	if answer.Reporting > 0 && at.Sub(answer.Watermark).Seconds() > lateFlushes*answer.Flush.Seconds() {
		if earlier, err := p.query.Eval(ctx, answer.Watermark); err == nil {
			look.add(earlier)
		}
	}
	return look, nil
}

func (l *lookAtPods) add(a aggregator.Answer) {
	for _, v := range a.Values {
		pod := v.Labels.Get(podLabel)
		if was, ok := l.values[pod]; !ok || v.V > was || math.IsNaN(was) {
			l.values[pod] = v.V
		}
	}
}

// state is what is known of a pod: of one that is partial as the query has it, of which metrics may
// be read since later than others.
func (l *lookAtPods) state(store *aggregator.Store, namespace, name string) aggregator.PodState {
	i := slices.IndexFunc(l.answer.Partial, func(s aggregator.PodState) bool { return s.Name == name && s.Namespace == namespace })
	if i >= 0 {
		return l.answer.Partial[i]
	}
	return store.Pod(namespace, name, l.at, l.answer.Window)
}

// noneOfIt is why a pod has no value of which all is known.
const noneOfIt = "had no request, and of none there is no such value"

// of is a pod's value in thousandths, with the time of its newest flush; missing says why it has
// none.
func (l *lookAtPods) of(store *aggregator.Store, namespace string, p cluster.SelectedPod) (milli int64, newest time.Time, missing string) {
	s := l.state(store, namespace, p.Name)
	from := l.at.Add(-l.answer.Window)
	switch older := p.Created.Before(l.started); {
	case s.Newest.IsZero(), s.Newest.Before(p.Created):
		return 0, newest, "has not reported yet"
	case !s.Reporting:
		return 0, newest, "is silent"
	case s.Rivals != nil:
		return 0, newest, "is contested: two senders report as it"
	case !s.Refused.IsZero():
		return 0, newest, "has had samples refused"
	case s.Unsent != "":
		return 0, newest, "does not send it: " + remedyForUnsent
	case s.Oldest.After(from) && (older || !s.Whole), !s.GapTo.IsZero() && s.GapFrom.After(p.Created):
		return 0, newest, "is not known back to the beginning of the window"
	}
	v, ok := l.values[p.Name]
	switch {
	case (!ok || math.IsNaN(v)) && (l.Additive() || l.idle): // it reports, and there was no request
		v = 0
	case !ok, math.IsNaN(v), math.IsInf(v, 0), v < 0, v > math.MaxInt64/1000:
		return 0, newest, noneOfIt
	}
	return int64(math.Round(v * 1000)), s.Newest, ""
}

// customValue is an answer in the API's form, which has no room for more.
func customValue(of custom_metrics.ObjectReference, metric string, selector labels.Selector, milli int64, newest time.Time, window time.Duration) custom_metrics.MetricValue {
	value := custom_metrics.MetricValue{
		DescribedObject: of,
		Metric:          custom_metrics.MetricIdentifier{Name: metric},
		Value:           *resource.NewMilliQuantity(milli, resource.DecimalSI),
	}
	if demanded := hpas.Demanded(selector); len(demanded) > 0 {
		value.Metric.Selector = &metav1.LabelSelector{MatchLabels: demanded}
	}
	if !newest.IsZero() {
		value.Timestamp = metav1.NewTime(newest)
	}
	if window > 0 {
		seconds := int64(math.Ceil(window.Seconds()))
		value.WindowSeconds = &seconds
	}
	return value
}
