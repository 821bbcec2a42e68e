package metricsapi

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// Verdict is what would become of an HPA, as far as it can be told without sidecars.
type Verdict string

const (
	VerdictServed   Verdict = "served"
	VerdictDoubtful Verdict = "doubtful"      // it works, and its author should know something
	VerdictRefused  Verdict = "not servable"  // a metric of it gets no value
	VerdictOthers   Verdict = "not concerned" // none of its metrics is meshpulse's
)

// Finding is what Lint says of one HPA or ScaledObject.
type Finding struct {
	File      string  `json:"file"`
	Kind      string  `json:"kind"`
	Namespace string  `json:"namespace"`
	Name      string  `json:"name"`
	Verdict   Verdict `json:"verdict"`
	// Problems are the Warning events that it would get, with the better forms.
	Problems []hpas.Problem `json:"problems,omitempty"`
	// Replacement is the HPA in place of a ScaledObject, and Differs what of that it has not.
	Replacement *autoscalingv2.HorizontalPodAutoscaler `json:"replacement,omitempty"`
	Differs     []string                               `json:"differs,omitempty"`
}

// Lint reads a file's HPAs as a server does, and KEDA's ScaledObjects as the HPAs that would take
// their place. words are what sidecars can send. The documents that cannot be read are refused, and
// take none of the others with them.
func Lint(path string, data []byte, words hpas.Vocabulary) (findings []Finding, refused []*hpas.FileError, err error) {
	file := hpas.Decode(path, data)
	found, err := lint(file.HPAs, words)
	if err != nil {
		return nil, nil, err
	}
	findings = found
	objects, bad := hpas.DecodeScaledObjects(path, data)
	for _, o := range objects {
		f := Finding{File: path, Kind: "ScaledObject", Namespace: o.Namespace, Name: o.Name, Verdict: VerdictOthers, Differs: o.Differs}
		if o.HPA != nil {
			one, err := lint([]hpas.HPA{*o.HPA}, words)
			if err != nil {
				return nil, nil, err
			}
			f.Verdict, f.Problems, f.Replacement = one[0].Verdict, one[0].Problems, o.HPA.HorizontalPodAutoscaler
		}
		findings = append(findings, f)
	}
	return findings, append(file.Refused, bad...), nil
}

// lint makes the HPAs those of a catalog over an empty store, and looks at it as a server would.
func lint(list []hpas.HPA, words hpas.Vocabulary) ([]Finding, error) {
	store, err := aggregator.New(aggregator.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	c := newCatalog(store, newWarner(func(hpas.HPA, hpas.Problem) {}, newMetrics(prometheus.NewRegistry())))
	c.words = words
	defer c.Close()
	c.Replace(list)
	states := map[types.NamespacedName]hpaState{}
	for _, h := range c.current.Load().hpas {
		states[h.Key()] = h
	}
	var findings []Finding
	for _, h := range list {
		state, ok := states[h.Key()]
		f := Finding{File: h.Path, Kind: "HorizontalPodAutoscaler", Namespace: h.Namespace, Name: h.Name}
		if ok {
			f.Verdict, f.Problems = state.verdict(), state.problems
		} else { // what a server contains as a fault
			f.Verdict = VerdictRefused
		}
		findings = append(findings, f)
	}
	return findings, nil
}

func (h hpaState) verdict() Verdict {
	for i, w := range h.Metrics {
		o := h.offers[i]
		if w.Expr == "" || o == nil || o.prepared.err != nil || len(o.prepared.never) > 0 {
			return VerdictRefused
		}
	}
	switch {
	case len(h.Unserved) > 0:
		return VerdictRefused
	case len(h.problems) > 0:
		return VerdictDoubtful
	case len(h.Metrics) == 0:
		return VerdictOthers
	}
	return VerdictServed
}
