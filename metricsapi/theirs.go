package metricsapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	cmv1beta2 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	emv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	adapter "sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/meshpulse/meshpulse/metricsapi/fallback"
)

const (
	// namesEvery is how often the other adapter is asked what metrics it has, which people list and
	// no HPA waits for.
	namesEvery = 10 * time.Second
	// namesDeadline is how long its discovery documents may take.
	namesDeadline = 3 * time.Second
)

// theirs are the metrics that the other adapter's discovery documents list. It is asked by itself,
// and not when somebody asks here: one that hangs would have the API server take both APIs for
// gone.
type theirs struct {
	to     *fallback.Adapter
	custom bool // the custom metrics API is served too
	failed interface{ Inc() }
	log    *slog.Logger

	names   atomic.Pointer[[]string]
	customs atomic.Pointer[[]adapter.CustomMetricInfo]
}

// external are the names of external metrics as it last told them, sorted.
func (t *theirs) external() []string {
	if names := t.names.Load(); names != nil {
		return *names
	}
	return nil
}

// ofObjects are those of the custom metrics API.
func (t *theirs) ofObjects() []adapter.CustomMetricInfo {
	if infos := t.customs.Load(); infos != nil {
		return *infos
	}
	return nil
}

// run asks until the context ends. What fails is counted each time, and told when it begins and
// ends.
func (t *theirs) run(ctx context.Context) {
	told := ""
	for {
		why := ""
		if err := t.ask(ctx); err != nil && ctx.Err() == nil {
			t.failed.Inc()
			why = err.Error()
		}
		switch {
		case why != "" && told == "":
			t.log.Warn("the other adapter does not tell what metrics it has: discovery lists those that it told last", "adapter", t.to.Address().String(), "why", why)
		case why == "" && told != "":
			t.log.Info("the other adapter tells again what metrics it has", "adapter", t.to.Address().String())
		}
		told = why
		select {
		case <-ctx.Done():
			return
		case <-time.After(namesEvery):
		}
	}
}

// ask reads its documents. One that cannot be read leaves what was known.
func (t *theirs) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, namesDeadline)
	defer cancel()
	list, err := t.list(ctx, emv1beta1.SchemeGroupVersion)
	if err == nil {
		names := make([]string, 0, len(list))
		for _, r := range list {
			names = append(names, r.Name)
		}
		slices.Sort(names)
		t.names.Store(&names)
	}
	if !t.custom {
		return err
	}
	list, failed := t.list(ctx, cmv1beta2.SchemeGroupVersion)
	if failed == nil {
		infos := customInfos(list)
		t.customs.Store(&infos)
	}
	return errors.Join(err, failed)
}

// list are the resources of a version of an API. One that it does not serve has none.
func (t *theirs) list(ctx context.Context, version schema.GroupVersion) ([]metav1.APIResource, error) {
	path := "/apis/" + version.String()
	status, body, err := t.to.Get(ctx, path)
	var list metav1.APIResourceList
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	case status == http.StatusNotFound:
		return nil, nil
	case status != http.StatusOK:
		return nil, fmt.Errorf("%s: status %d: %.200q", path, status, body)
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("%s: no list of resources: %w", path, err)
	}
	return list.APIResources, nil
}

// customInfos are what a document of the custom metrics API lists: a resource with a metric.
func customInfos(list []metav1.APIResource) []adapter.CustomMetricInfo {
	infos := []adapter.CustomMetricInfo{}
	for _, r := range list {
		if of, metric, ok := strings.Cut(r.Name, "/"); ok {
			infos = append(infos, adapter.CustomMetricInfo{GroupResource: schema.ParseGroupResource(of), Namespaced: r.Namespaced, Metric: metric})
		}
	}
	return sortedInfos(infos)
}

// sortedInfos has those of one resource side by side, and each once.
func sortedInfos(infos []adapter.CustomMetricInfo) []adapter.CustomMetricInfo {
	slices.SortFunc(infos, func(a, b adapter.CustomMetricInfo) int {
		return cmp.Or(cmp.Compare(a.GroupResource.String(), b.GroupResource.String()), cmp.Compare(a.Metric, b.Metric), compareBool(a.Namespaced, b.Namespaced))
	})
	return slices.Compact(infos)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
