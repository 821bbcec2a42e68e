package metricsapi

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// scaledObjects are KEDA's ScaledObjects with a trigger on Istio's metrics, as the HPAs that would
// take their places: in a catalog of their own, by which nothing is answered and nobody is told.
type scaledObjects struct {
	*catalog
	by map[types.NamespacedName]hpas.ScaledObject // the HPAs' names
}

// scaledPrefix is before a ScaledObject's name among those of HPAs.
const scaledPrefix = "scaledobject/"

// newScaledObjects reads as the HPAs' own catalog does.
func newScaledObjects(of *catalog) *scaledObjects {
	c := newCatalog(of.store, newWarner(nil, newMetrics(nil)))
	c.words = hpas.Vocabulary{Keeps: of.words.Keeps, Tags: of.words.Tags}
	c.reading = of.reading
	return &scaledObjects{catalog: c}
}

// take makes these ScaledObjects the current ones.
func (x *shadowing) take(list []hpas.ScaledObject) {
	by, together := map[types.NamespacedName]hpas.ScaledObject{}, []hpas.HPA{}
	for _, o := range list {
		if o.HPA == nil {
			continue
		}
		h := o.KEDAs()
		by[h.Key()] = o
		together = append(together, h)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.scaled.Replace(together)
	x.scaled.by = by
}

// compared is a metric whose turn it is to be compared, as it is asked for there.
type compared struct {
	h hpas.HPA
	w hpas.Metric
	o *offer
}

// all are the metrics that are compared now: those of HPAs, and the triggers of ScaledObjects that
// have their own query.
func (x *shadowing) all() (list []compared) {
	for _, h := range x.provider.catalog.current.Load().hpas {
		for i, w := range h.Metrics {
			if o := h.offers[i]; o != nil && x.to.knows(w) {
				list = append(list, compared{h.HPA, w, o})
			}
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, h := range x.scaled.current.Load().hpas {
		of := x.scaled.by[h.Key()]
		for i, w := range h.Metrics {
			trigger, ok := of.Triggers[w.Written]
			if o := h.offers[i]; ok && trigger.Own && o != nil && o.prepared.err == nil && len(o.prepared.never) == 0 {
				w.Name, w.Selector = trigger.KEDAsMetric(), labels.SelectorFromSet(labels.Set{hpas.KEDAsLabel: of.Name})
				list = append(list, compared{h.HPA, w, o})
			}
		}
	}
	return list
}

// scaledHere explains the ScaledObjects of a namespace, "" of all, as the HPAs that would take
// their places.
func (x *shadowing) scaledHere(ctx context.Context, namespace string, at time.Time) (list []explain.Explanation) {
	if x == nil {
		return nil
	}
	x.mu.Lock()
	hpas, by := x.scaled.current.Load().hpas, x.scaled.by
	x.mu.Unlock()
	for _, h := range hpas {
		if namespace == "" || h.Namespace == namespace {
			e := x.explain(ctx, h, at, at, false)
			e.Name = scaledPrefix + by[h.Key()].Name
			list = append(list, e)
		}
	}
	return list
}
