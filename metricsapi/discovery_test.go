package metricsapi

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	emv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	externalclient "k8s.io/metrics/pkg/client/external_metrics"

	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// The API server and newer clients ask for all groups at once: it is what the group's own document
// lists.
func TestAggregatedDiscoveryListsWhatPlainDiscoveryLists(t *testing.T) {
	s := startServer(t, nil)
	plain, err := discovery.NewDiscoveryClientForConfig(&rest.Config{Host: "https://" + s.Addr().String(), TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	for i, metrics := range []string{"", "a", "a b", "b", ""} {
		_ = os.Remove(filepath.Join(s.dir, "hpa.yaml"))
		want := "[]"
		if metrics != "" {
			annotations, specs := "", ""
			for _, m := range strings.Fields(metrics) {
				annotations += "metric-config.external." + m + `.prometheus/query: "vector(1)", `
				specs += fixture.External(m, "{matchLabels: {type: prometheus}}", `type: AverageValue, averageValue: "10"`) + ", "
			}
			s.write("hpa.yaml", fixture.HPA("podinfo", annotations, specs))
			want = ""
			for _, m := range strings.Fields(metrics) {
				want += "," + strings.Replace(strings.Trim(discovered, "[]"), "prometheus-query", m, 1)
			}
			want = "[" + want[1:] + "]"
		}
		s.discovers(want)
		groups, resources, failed, err := plain.GroupsAndMaybeResources()
		if err != nil || len(failed) > 0 || resources == nil {
			t.Fatalf("aggregated discovery: %v, failed %v, resources %v", err, failed, resources)
		}
		version := emv1beta1.SchemeGroupVersion
		own, err := plain.ServerResourcesForGroupVersion(version.String())
		if err != nil {
			t.Fatal(err)
		}
		if len(groups.Groups) != 2 || groups.Groups[0].PreferredVersion.GroupVersion != version.String() {
			t.Errorf("%d: groups are %v", i, groups.Groups)
		}
		for n := range own.APIResources { // left out where they are those of the document
			own.APIResources[n].Group, own.APIResources[n].Version = version.Group, version.Version
		}
		if d := cmp.Diff(own.APIResources, resources[version].APIResources, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%d, %q (-plain +aggregated):\n%s", i, metrics, d)
		}
	}
}

// An API server holds an APIService for available when its group's document is answered, and takes
// clients to what it lists.
func TestTheGroupOfOurOwnIsAnswered(t *testing.T) {
	s := startServer(t, nil)
	client, err := discovery.NewDiscoveryClientForConfig(&rest.Config{Host: "https://" + s.Addr().String(), TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := client.ServerResourcesForGroupVersion("meshpulse.io/v1alpha1")
	if err != nil || list.GroupVersion != "meshpulse.io/v1alpha1" || len(list.APIResources) != len(ownResources()) {
		t.Errorf("%+v, error %v", list, err)
	}
}

// Flagger asks for this metric to see whether the provider is there, as its externalmetrics
// provider does (IsOnline).
func TestFlaggersHealthCheckIsAnswered(t *testing.T) {
	s := startServer(t, nil)
	client, err := externalclient.NewForConfig(&rest.Config{Host: "https://" + s.Addr().String(), TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := client.NamespacedMetrics("kube-system").List("dummy-metric", labels.Everything())
	if err != nil || len(list.Items) != 0 {
		t.Errorf("%v, error %v, want an empty list", list, err)
	}
	if _, body := s.get(metricPath("kube-system", "dummy-metric", "")); !strings.Contains(body, `"items":[]`) {
		t.Errorf("by hand: %s", body)
	}
	s.refused("test", "dummy-metric", "", http.StatusNotFound)
	s.refused("kube-system", "dummy-metrics", "", http.StatusNotFound)
}
