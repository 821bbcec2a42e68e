package metricsapi

import (
	"net/http"
	"slices"
	"sync"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	emv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	adapter "sigs.k8s.io/custom-metrics-apiserver/pkg/provider"
)

// aggregatedDiscovery serves /apis in its aggregated form, which the API server and newer clients
// ask for, with what the plain form of the group lists at that moment. The library, whose metrics
// come and go, adds nothing to it.
type aggregatedDiscovery struct {
	aggregated.ResourceManager
	lists interface{ ListAPIResources() []metav1.APIResource }

	mu     sync.Mutex
	listed []string
	added  bool
}

func newAggregatedDiscovery(p adapter.ExternalMetricsProvider) *aggregatedDiscovery {
	return &aggregatedDiscovery{ResourceManager: aggregated.NewResourceManager("apis"), lists: adapter.NewExternalMetricResourceLister(p)}
}

func (d *aggregatedDiscovery) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.refresh()
	d.ResourceManager.ServeHTTP(w, r)
}

// refresh adds what has changed since it was last asked: what it is given makes it build the
// document anew.
func (d *aggregatedDiscovery) refresh() {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	version := apidiscoveryv2.APIVersionDiscovery{Version: emv1beta1.SchemeGroupVersion.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
	for _, r := range d.lists.ListAPIResources() {
		names = append(names, r.Name)
		kind := metav1.GroupVersionKind{Group: emv1beta1.GroupName, Version: version.Version, Kind: r.Kind}
		version.Resources = append(version.Resources, apidiscoveryv2.APIResourceDiscovery{
			Resource: r.Name, ResponseKind: &kind, Scope: apidiscoveryv2.ScopeNamespace, Verbs: r.Verbs,
		})
	}
	if d.added && slices.Equal(names, d.listed) {
		return
	}
	d.listed, d.added = names, true
	d.AddGroupVersion(emv1beta1.GroupName, version)
}
