package metricsapi

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	cmv1beta1 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta1"
	cmv1beta2 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	emv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// lookEvery is how often the APIService is looked at.
const lookEvery = 30 * time.Second

// An operator of another adapter may write into the APIService by which the API server comes here:
// KEDA's writes the authority of its own certificates. That is told, and never undone: two that
// write the same would write for ever.

// sharedAPIs are the APIServices that may have been taken from the other adapter.
func (p *passing) sharedAPIs() []string {
	names := []string{emv1beta1.SchemeGroupVersion.Version + "." + emv1beta1.GroupName}
	if p.custom {
		names = append(names, cmv1beta2.SchemeGroupVersion.Version+"."+cmv1beta2.GroupName, cmv1beta1.SchemeGroupVersion.Version+"."+cmv1beta1.GroupName)
	}
	return names
}

// seenAPI is what was found of one when it was last looked at.
type seenAPI struct {
	had bool   // it has led here
	why string // what is told
}

// watchAPIServices looks at them until the context ends.
func (s *Server) watchAPIServices(ctx context.Context) {
	seen := map[string]seenAPI{}
	for {
		changed := 0
		for _, name := range s.passing.sharedAPIs() {
			seen[name] = s.lookAtAPIService(ctx, name, seen[name])
			changed = max(changed, min(len(seen[name].why), 1))
		}
		s.passing.changed.Set(float64(changed))
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
	}
}

// lookAtAPIService tells of one that has been changed, once. One that cannot be read is as it was.
func (s *Server) lookAtAPIService(ctx context.Context, name string, was seenAPI) seenAPI {
	a, err := s.api.APIService(ctx, name)
	if err != nil {
		return was
	}
	serving, _ := s.config.SecureServing.Cert.CurrentCertKeyContent()
	ours, why := leadsHere(a, s.passing.own, serving, s.options.Now())
	had := was.had || ours
	if !had && !a.Taken {
		why = "" // it has never been ours: --no-apiservice
	}
	if why != "" && why != was.why {
		s.options.Log.Warn("the APIService has been changed by somebody else", "apiservice", name, "why", why)
		s.provider.metrics.events.WithLabelValues(hpas.ReasonAPIServiceChanged).Inc()
		s.api.Events.WarnOf(a.Object, hpas.Problem{Reason: hpas.ReasonAPIServiceChanged, Message: why})
	}
	return seenAPI{had, why}
}

// leadsHere says whether an APIService leads to the Service meshpulse of a namespace, and why the
// API server does not come by it all the same; "" where it does.
func leadsHere(a cluster.APIService, namespace string, serving []byte, now time.Time) (ours bool, why string) {
	if a.Namespace != namespace || a.Service != ownService {
		return false, fmt.Sprintf("it leads to %s/%s and no longer to meshpulse, which answers for that one's metrics too: somebody has taken it back. "+
			"Keep them from it, then run install.sh again; or leave it to them: uninstall.sh", a.Namespace, a.Service)
	}
	if a.Insecure {
		return true, ""
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(a.CABundle)
	block, rest := pem.Decode(serving)
	if block == nil {
		return true, ""
	}
	between.AppendCertsFromPEM(rest)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err == nil {
		_, err = leaf.Verify(x509.VerifyOptions{DNSName: a.Service + "." + a.Namespace + ".svc", Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	}
	if err != nil {
		return true, "its caBundle is not that of meshpulse's certificate, so the API server does not trust meshpulse, and no metric of this API has a value: another operator has written its own there " +
			"(KEDA's does: --enable-apiservice-patching=false). Keep it from that, then run install.sh again"
	}
	return true, ""
}
