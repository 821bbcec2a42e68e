package metricsapi

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	emv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// lookEvery is how often the APIService is looked at.
const lookEvery = 30 * time.Second

// An operator of another adapter may write into the APIService by which the API server comes here:
// KEDA's writes the authority of its own certificates. That is told, and never undone: two that
// write the same would write for ever.

// watchAPIService looks at it until the context ends.
func (s *Server) watchAPIService(ctx context.Context) {
	name := emv1beta1.SchemeGroupVersion.Version + "." + emv1beta1.GroupName
	var had bool
	told := ""
	for {
		if a, err := s.api.APIService(ctx, name); err == nil {
			serving, _ := s.config.SecureServing.Cert.CurrentCertKeyContent()
			ours, why := leadsHere(a, s.passing.own, serving, s.options.Now())
			had = had || ours
			if !had && !a.Taken {
				why = "" // it has never been ours: --no-apiservice
			}
			s.passing.changed.Set(float64(min(len(why), 1)))
			if why != "" && why != told {
				s.options.Log.Warn("the APIService has been changed by somebody else", "apiservice", name, "why", why)
				s.provider.metrics.events.WithLabelValues(hpas.ReasonAPIServiceChanged).Inc()
				s.api.Events.WarnOf(a.Object, hpas.Problem{Reason: hpas.ReasonAPIServiceChanged, Message: why})
			}
			told = why
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
	}
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
		return true, "its caBundle is not that of meshpulse's certificate, so the API server does not trust meshpulse, and no external metric has a value: another operator has written its own there " +
			"(KEDA's does: --enable-apiservice-patching=false). Keep it from that, then run install.sh again"
	}
	return true, ""
}
