package metricsapi

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/metrics/pkg/apis/custom_metrics"
)

// Several replicas and the custom metrics API: as for external metrics. Only that of pods each is
// answered for by itself, so of each what either owner knows in full counts.

// customQuestion is what one replica asks another beside namespace, metric and selector.
type customQuestion struct {
	// Of is the resource, deployments.apps, Object the name of one of it, "" where it is pods, with
	// labels that Pods selects.
	Of, Object, Pods string
}

// getCustom is what all replicas together say.
func (c *customProvider) getCustom(ctx context.Context, r customRequest) said {
	if c.replicas == nil {
		return c.sayCustom(ctx, r)
	}
	q := question{Namespace: r.namespace, Metric: r.metric, Selector: r.selector.String(), Custom: &customQuestion{Of: r.of.String(), Object: r.object}}
	if r.pods != nil {
		q.Custom.Pods = r.pods.String()
	}
	return c.together(ctx, c.inquiryOf(ctx, q, r), true)
}

func (c *customProvider) inquiryOf(ctx context.Context, q question, r customRequest) inquiry {
	return inquiry{
		q,
		func() (*prepared, *offer, *refusal) { return c.find(r) },
		func() said { return c.sayCustom(ctx, r) },
	}
}

// inquire is of another replica's question.
func (c *customProvider) inquire(ctx context.Context, q question, selector labels.Selector) (inquiry, error) {
	if c == nil {
		return inquiry{}, errors.New("no custom metrics are served by this replica (--custom-metrics)")
	}
	pods, err := labels.Parse(q.Custom.Pods)
	if err != nil {
		return inquiry{}, fmt.Errorf("pods %q: %w", q.Custom.Pods, err)
	}
	r := customRequest{namespace: q.Namespace, of: schema.ParseGroupResource(q.Custom.Of), object: q.Custom.Object, pods: pods, metric: q.Metric, selector: selector}
	return c.inquiryOf(ctx, q, r), nil
}

// answered says whether a reply is one: an object has one value.
func (q *customQuestion) answered(r reply) bool {
	return q.Object == "" && len(r.Custom) > 0 || len(r.Custom) == 1
}

// withPods adds to values of pods those of pods that have none.
func withPods(values, others []custom_metrics.MetricValue) []custom_metrics.MetricValue {
	known := map[custom_metrics.ObjectReference]bool{}
	for _, v := range values {
		known[v.DescribedObject] = true
	}
	for _, other := range others {
		if !known[other.DescribedObject] {
			values = append(values, other)
		}
	}
	return values
}
