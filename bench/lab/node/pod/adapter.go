package main

import (
	"fmt"
	"net/http"
	"strings"
)

// What the adapter answers, whatever it is asked.
const (
	adapterValue    = `{"kind":"%s","apiVersion":"%s","metadata":{},"items":[{"metricName":"queue","value":"7"}]}`
	adapterListing  = `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"%s","resources":[{"name":"%s","singularName":"","namespaced":true,"kind":"%s","verbs":["get"]}]}`
	externalVersion = "external.metrics.k8s.io/v1beta1"
)

// adapter plays another adapter of external and custom metrics, with a certificate of its files.
func adapter(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("adapter takes ADDRESS CERTIFICATE KEY, not %q", args)
	}
	answer := func(w http.ResponseWriter, r *http.Request) {
		version, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/apis/"), "/namespaces/")
		kind, resource := "ExternalMetricValueList", "queue"
		if version != externalVersion {
			kind, resource = "MetricValueList", "pods/queue"
		}
		w.Header().Set("Content-Type", "application/json")
		switch {
		case version != externalVersion && !strings.HasPrefix(version, "custom.metrics.k8s.io/v1beta"):
			w.WriteHeader(http.StatusNotFound)
		case rest == "":
			_, _ = fmt.Fprintf(w, adapterListing, version, resource, kind)
		default:
			_, _ = fmt.Fprintf(w, adapterValue, kind, version)
		}
	}
	return http.ListenAndServeTLS(args[0], args[1], args[2], http.HandlerFunc(answer))
}
