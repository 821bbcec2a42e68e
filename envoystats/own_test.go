package envoystats

import (
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/meshpulse/meshpulse/aggregator"
)

// A series that says that its reporter is the destination is of the pod that reports, in whichever
// form the labels come: a pod cannot report another workload's requests.
func TestAPodSpeaksForItselfInLabelsToo(t *testing.T) {
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	k := serveWith(t, Config{}, nil, func(p aggregator.Pod) podStream { return store.Connect(p) })
	label := func(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }
	now := time.Now().UnixMilli()
	f := &dto.MetricFamily{Name: proto.String("istiocustom.istio_requests_total"), Type: dto.MetricType_COUNTER.Enum(), Metric: []*dto.Metric{{
		Label: []*dto.LabelPair{
			label("reporter", "destination"), label("destination_workload", "victim"), label("destination_workload_namespace", "shop"),
			label("destination_service_name", "free"),
		},
		Counter: &dto.Counter{Value: proto.Float64(5)}, TimestampMs: &now,
	}}}
	k.open(t).send(hello(t, "web-0", f)).close()
	for expr, want := range map[string]int{
		`istio_requests_total{destination_workload_namespace="shop"}`:                                                                                         0,
		`istio_requests_total{destination_workload_namespace="test",destination_service_name="free",misread_tags=~".*destination_workload_namespace.shop.*"}`: 1,
	} {
		q, err := store.Query(expr)
		if err != nil {
			t.Fatal(err)
		}
		a, err := q.Eval(t.Context(), time.Now())
		if err != nil || len(a.Values) != want {
			t.Errorf("%s: %d series, error %v, want %d", expr, len(a.Values), err, want)
		}
	}
}
