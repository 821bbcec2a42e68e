package envoystats

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meshpulse/meshpulse/aggregator"
)

// oldName is a request counter's name as sidecars of Istio up to 1.17 send it.
const oldName = "wasmcustom.reporter=.=destination;.;source_workload=.=web;.;destination_workload=.=podinfo;.;response_code=.=200;.;istio_requests_total"

func TestIstiosMetricsUnderOtherNamesAreTold(t *testing.T) {
	const joined = ".reporter.destination.source_workload.web.destination_workload.podinfo.response_code.200"
	of := func(kind dto.MetricType, name string) *dto.MetricFamily { return family(name, kind, counter(1000, 5)) }
	const c, g = dto.MetricType_COUNTER, dto.MetricType_GAUGE
	for name, tc := range map[string]struct {
		keep     []string
		families []*dto.MetricFamily
		want     int
	}{
		"of Istio 1.17":                   {nil, []*dto.MetricFamily{of(c, oldName), of(c, strings.Replace(oldName, "200", "503", 1))}, 2},
		"under another prefix":            {nil, []*dto.MetricFamily{of(c, "mystats.istio_requests_total"+joined)}, 1},
		"under a prefix before Istio's":   {nil, []*dto.MetricFamily{of(c, "mesh.istiocustom.istio_tcp_sent_bytes_total"+joined)}, 1},
		"with its tags as labels":         {nil, []*dto.MetricFamily{of(c, "mystats.istio_requests_total")}, 1},
		"a name with another's inside it": {nil, []*dto.MetricFamily{of(c, "cluster.istio_gateway.istio_response_bytes")}, 1},
		"as they are read":                {nil, []*dto.MetricFamily{of(c, "istiocustom.istio_requests_total"+joined)}, 0},
		"as they are read, not kept":      {[]string{"istio_tcp"}, []*dto.MetricFamily{of(c, "istiocustom.istio_requests_total"+joined)}, 0},
		"beside those that are read":      {nil, []*dto.MetricFamily{of(c, oldName), of(c, "istiocustom.istio_requests_total"+joined)}, 0},
		"what is not Istio's":             {nil, []*dto.MetricFamily{of(c, "cluster.istio_ingress.upstream_rq_total"), of(c, "server.istio_requests")}, 0},
		"a gauge":                         {nil, []*dto.MetricFamily{of(g, "mystats.istio_requests_total")}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := message(t, tc.families...)
			s := newScan(Config{Keep: tc.keep})
			got, err := scanned(s, new(seen), b)
			if err != nil || got.Refused["other_form"] != tc.want || s.batch.OtherForm != (tc.want > 0) || s.batch.Refused != tc.want {
				t.Errorf("%d families of another form, told %t, refused %d (%v); want %d", got.Refused["other_form"], s.batch.OtherForm, s.batch.Refused, err, tc.want)
			}
			if want := oracleOtherForms(Config{Keep: tc.keep}, b); want != tc.want {
				t.Errorf("the oracle counts %d", want)
			}
		})
	}
}

// Once a sidecar has sent Istio's metrics as they are read, it is not asked any more.
func TestASidecarThatIsReadIsNotAskedForOtherForms(t *testing.T) {
	keys, s := new(seen), newScan(Config{})
	for i, step := range []struct {
		name string
		want bool
	}{{oldName, true}, {"istio_requests_total.reporter.source", false}, {oldName, false}} {
		if _, err := scanned(s, keys, message(t, family(step.name, dto.MetricType_COUNTER, counter(1000, 5)))); err != nil || s.batch.OtherForm != step.want {
			t.Errorf("message %d: told %t, want %t (%v)", i, s.batch.OtherForm, step.want, err)
		}
	}
}

// The pod reports, and nothing is known of it.
func TestAPodOfAnotherFormReportsAndIsNotKnown(t *testing.T) {
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	server, err := NewServer(Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}, store)
	if err != nil {
		t.Fatal(err)
	}
	st := &stream{server: server}
	defer st.close()
	now := time.Now()
	for i := range 3 {
		at := now.Add(time.Duration(i) * 5 * time.Second)
		s := server.scans.get()
		families := message(t, family(oldName, dto.MetricType_COUNTER, counter(at.UnixMilli(), 5)))
		s.buf = append(protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), identifier(t, &corev3.Node{Id: "sidecar~10.0.0.1~podinfo-1.test~x"})), families...)
		if reason, err := st.message(at, s); err != nil {
			t.Fatal(reason, err)
		}
	}
	at := now.Add(11 * time.Second)
	if p := store.Pod("test", "podinfo-1", at, time.Minute); !p.Reporting || !p.OtherForm || p.Refused.IsZero() {
		t.Errorf("the pod is %+v", p)
	}
	if n := strings.Count(log.String(), "in a form that is not read"); n != 1 {
		t.Errorf("it is told %d times", n)
	}
	if store.Pod("test", "podinfo-1", at.Add(2*time.Minute), time.Minute).OtherForm {
		t.Error("it is told of a window in which nothing came")
	}
}
