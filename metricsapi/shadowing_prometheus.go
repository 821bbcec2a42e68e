package metricsapi

import (
	"context"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/shadow"
)

// prometheusShadow asks a Prometheus for the expressions of HPAs' metrics.
type prometheusShadow struct {
	*shadow.Prometheus
	words   hpas.Vocabulary
	ownOnly bool // see Options.QueryNamespaces
}

func newPrometheusShadow(o Options, words hpas.Vocabulary) (*prometheusShadow, error) {
	to, err := shadow.NewPrometheus(o.shadowPrometheus())
	return &prometheusShadow{to, words, o.QueryNamespaces == queryNamespacesOwn}, err
}

func (x *prometheusShadow) run(context.Context)   {}
func (x *prometheusShadow) begin(context.Context) {}

// knows says whether an expression is the whole of a metric: one of pods is of those alone that the
// HPA's target has.
func (x *prometheusShadow) knows(w hpas.Metric) bool {
	return w.Kind != autoscalingv2.PodsMetricSourceType
}

// accepts says whether an expression may be sent: the Prometheus may have far more than the mesh's
// metrics, whoever wrote the HPA not the right to read them.
func (x *prometheusShadow) accepts(p *prepared, namespace string) bool {
	if p.err != nil || !p.OfMesh(x.words) {
		return false
	}
	return !x.ownOnly || p.OfNamespace(namespace)
}

// read asks for the expression at an instant.
func (x *prometheusShadow) read(ctx context.Context, _ hpas.HPA, _ hpas.Metric, o *offer, at time.Time) (r shadow.Reading, err error) {
	if r.Value, err = x.Value(ctx, o.prepared.Text, at); err != nil || !o.prepared.Selects() {
		return r, err
	}
	if age, err := x.Age(ctx, o.prepared.Parts[0].VectorSelector, at); err == nil {
		r.Age = &age
	}
	return r, nil
}
