package metricsapi

import (
	"net/http"
	"slices"
	"sync"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	cmv1beta2 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	emv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	adapter "sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// aggregatedDiscovery serves /apis in its aggregated form, which the API server and newer clients
// ask for, with what the plain form of the group lists at that moment. The library, whose metrics
// come and go, adds nothing to it.
type aggregatedDiscovery struct {
	aggregated.ResourceManager
	lists interface{ ListAPIResources() []metav1.APIResource }
	// custom lists those of the custom metrics API; nil where it is not served.
	custom adapter.CustomMetricsProvider

	mu     sync.Mutex
	listed []string
	added  bool
	// customs are what was listed of the custom metrics API, nil before that.
	customs []adapter.CustomMetricInfo
}

func newAggregatedDiscovery(p adapter.ExternalMetricsProvider, custom adapter.CustomMetricsProvider) *aggregatedDiscovery {
	return &aggregatedDiscovery{ResourceManager: aggregated.NewResourceManager("apis"), lists: adapter.NewExternalMetricResourceLister(p), custom: custom}
}

func (d *aggregatedDiscovery) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.refresh()
	d.refreshCustom()
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
	own := apidiscoveryv2.APIVersionDiscovery{Version: explain.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
	for _, r := range ownResources() {
		scope := apidiscoveryv2.ScopeCluster
		if r.Namespaced {
			scope = apidiscoveryv2.ScopeNamespace
		}
		kind := metav1.GroupVersionKind{Group: explain.Group, Version: explain.Version, Kind: r.Kind}
		own.Resources = append(own.Resources, apidiscoveryv2.APIResourceDiscovery{Resource: r.Name, SingularResource: r.SingularName, ResponseKind: &kind, Scope: scope, Verbs: r.Verbs})
	}
	d.AddGroupVersion(explain.Group, own)
	d.AddGroupVersion(emv1beta1.GroupName, version)
}

// refreshCustom is refresh for the custom metrics API: a resource with its metrics as subresources.
func (d *aggregatedDiscovery) refreshCustom() {
	if d.custom == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.custom.ListAllMetrics()
	if d.customs != nil && slices.Equal(all, d.customs) {
		return
	}
	d.customs = all
	version := apidiscoveryv2.APIVersionDiscovery{Version: cmv1beta2.SchemeGroupVersion.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
	kind := metav1.GroupVersionKind{Group: cmv1beta2.GroupName, Version: version.Version, Kind: "MetricValueList"}
	for _, m := range all {
		resource := m.GroupResource.String()
		last := len(version.Resources) - 1
		if last < 0 || version.Resources[last].Resource != resource {
			scope := apidiscoveryv2.ScopeCluster
			if m.Namespaced {
				scope = apidiscoveryv2.ScopeNamespace
			}
			version.Resources, last = append(version.Resources, apidiscoveryv2.APIResourceDiscovery{Resource: resource, Scope: scope}), last+1
		}
		version.Resources[last].Subresources = append(version.Resources[last].Subresources,
			apidiscoveryv2.APISubresourceDiscovery{Subresource: m.Metric, ResponseKind: &kind, Verbs: []string{"get"}})
	}
	d.AddGroupVersion(cmv1beta2.GroupName, version)
}
