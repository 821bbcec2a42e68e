package metricsapi

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// What another operator makes of the APIService is told.
func TestAnAPIServiceThatLeadsElsewhere(t *testing.T) {
	ours, _, err := cert.GenerateSelfSignedCertKey("meshpulse.here.svc", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	theirs, _, err := cert.GenerateSelfSignedCertKey("meshpulse.here.svc", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		a    cluster.APIService
		ours bool
		why  string
	}{
		"it leads here":                  {cluster.APIService{Namespace: "here", Service: "meshpulse", CABundle: ours}, true, ""},
		"both authorities":               {cluster.APIService{Namespace: "here", Service: "meshpulse", CABundle: append(append([]byte{}, theirs...), ours...)}, true, ""},
		"nobody's authority":             {cluster.APIService{Namespace: "here", Service: "meshpulse"}, true, "its caBundle is not"},
		"another one's authority":        {cluster.APIService{Namespace: "here", Service: "meshpulse", CABundle: theirs}, true, "its caBundle is not"},
		"the certificate is not checked": {cluster.APIService{Namespace: "here", Service: "meshpulse", Insecure: true}, true, ""},
		"another one's Service":          {cluster.APIService{Namespace: "keda", Service: "metrics", CABundle: ours}, false, "it leads to keda/metrics"},
		"that of another namespace":      {cluster.APIService{Namespace: "there", Service: "meshpulse", CABundle: ours}, false, "it leads to there/meshpulse"},
		"nobody's":                       {cluster.APIService{}, false, "it leads to /"},
	} {
		is, why := leadsHere(c.a, "here", ours, time.Now())
		if is != c.ours || (why == "") != (c.why == "") || !strings.Contains(why, c.why) {
			t.Errorf("%s: ours %t, %q; want %t, %q", name, is, why, c.ours, c.why)
		}
	}
}

// A caBundle that somebody else has written is an event on the APIService and in the metric, and is
// left as it is.
func TestAChangedAPIServiceIsTold(t *testing.T) {
	certificate, key, err := cert.GenerateSelfSignedCertKey("meshpulse.meshpulse-system.svc", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, data := range map[string][]byte{"tls.crt": certificate, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start := func(t *testing.T, spec, annotations string) (*fakeAPI, *testServer) {
		api, other := newFakeAPI(t), startOtherAdapter(t)
		api.apiService = fmt.Sprintf(`{"kind":"APIService","apiVersion":"apiregistration.k8s.io/v1","metadata":{"name":"v1beta1.external.metrics.k8s.io","uid":"1","annotations":{%s}},"spec":{%s}}`, annotations, spec)
		return api, startServer(t, func(o *Options) {
			other.options(t, api)(o)
			o.TLSCertFile, o.TLSKeyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
		})
	}
	const here, there = `"service":{"namespace":"meshpulse-system","name":"meshpulse"}`, `"service":{"namespace":"keda","name":"metrics"}`
	bundle := fmt.Sprintf(`,"caBundle":%q`, base64.StdEncoding.EncodeToString(certificate))
	for name, c := range map[string]struct{ spec, annotations, metric, events string }{
		"as it should be":         {here + bundle, "", "0", ""},
		"another caBundle":        {here, "", "1", hpas.ReasonAPIServiceChanged},
		"taken back":              {there, `"meshpulse.io/replaced-spec":"{}"`, "1", hpas.ReasonAPIServiceChanged},
		"it has never been taken": {there, "", "0", ""},
	} {
		t.Run(name, func(t *testing.T) {
			api, s := start(t, c.spec, c.annotations)
			s.token = "hpa"
			eventually(t, func() bool { return api.looks.Load() > 0 }, func() string { return "it is not looked at" })
			eventually(t, func() bool {
				_, body := s.get("/metrics")
				return api.reasons() == c.events && strings.Contains(body, "meshpulse_metricsapi_apiservice_changed "+c.metric+"\n")
			}, func() string { return "events are " + api.reasons() })
		})
	}
}
