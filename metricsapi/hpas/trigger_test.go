package hpas

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"
)

// of is metadata with a threshold, as pairs of keys and values.
func of(pairs ...string) map[string]string {
	metadata := map[string]string{"scalerAddress": "meshpulse-keda.meshpulse-system:9091", TriggerThreshold: "10"}
	for i := 0; i < len(pairs); i += 2 {
		metadata[pairs[i]] = pairs[i+1]
	}
	return metadata
}

const query = `sum(rate(istio_requests_total{destination_service_name="a",reporter="source"}[1m]))`

func TestATriggersMetadataIsRead(t *testing.T) {
	for name, test := range map[string]struct {
		metadata     map[string]string
		metric, expr string
	}{
		"PromQL":                 {of(TriggerQuery, query+"\n"), "meshpulse-query", query},
		"a metric by name":       {of(TriggerMetric, "istio-requests-per-second"), "istio-requests-per-second", `sum(rate(istio_requests_total{destination_workload_namespace="test",reporter="destination"}[1m]))`},
		"in capitals":            {of(TriggerMetric, "Istio-Requests-Per-Second"), "istio-requests-per-second", `sum(rate(istio_requests_total{destination_workload_namespace="test",reporter="destination"}[1m]))`},
		"with selector, window":  {of(TriggerMetric, "istio-requests-in-flight", TriggerSelector, "destination_workload=a", TriggerWindow, "30s"), "istio-requests-in-flight", `sum(rate(istio_request_duration_milliseconds_sum{destination_workload_namespace="test",destination_workload="a",reporter="destination"}[30s])) / 1000`},
		"as callers see it":      {of(TriggerMetric, "istio-requests-per-second", TriggerSelector, "reporter=source,destination_service_name=a"), "istio-requests-per-second", `sum(rate(istio_requests_total{destination_service_namespace="test",destination_service_name="a",reporter="source"}[1m]))`},
		"KEDA's keys are KEDA's": {of(TriggerQuery, query, "enableTLS", "true", "unsafeSsl", "false", "anyFromEnv", "secret"), "meshpulse-query", query},
	} {
		t.Run(name, func(t *testing.T) {
			read, err := ReadTrigger("test", test.metadata)
			if err != nil || read.Metric != test.metric || read.Expr != test.expr || read.Threshold.String() != "10" || read.Activation != 0 {
				t.Errorf("%+v, %v", read, err)
			}
		})
	}
	read, err := ReadTrigger("test", of(TriggerQuery, query, TriggerThreshold, "0.5", TriggerActivation, "0.1", TriggerSurgeWindow, "5s", TriggerSurgeAction, "scale"))
	if err != nil || read.Threshold.MilliValue() != 500 || read.Activation != 0.1 || read.Surge.Config.Window != 5*time.Second || read.Surge.Action != SurgeScale || !read.Surge.Asked {
		t.Errorf("%+v, %v", read, err)
	}
}

func TestMetadataThatCannotBeServedIsToldByKeyAndRemedy(t *testing.T) {
	for name, test := range map[string]struct {
		metadata map[string]string
		key, why string
	}{
		"nothing to count":          {of(), TriggerQuery, "metric: istio-requests-per-second"},
		"two things to count":       {of(TriggerQuery, query, TriggerMetric, "istio-error-ratio"), TriggerMetric, "leave one of them out"},
		"no PromQL":                 {of(TriggerQuery, "sum("), TriggerQuery, "give a PromQL expression"},
		"a selector of a query":     {of(TriggerQuery, query, TriggerSelector, "a=b"), TriggerSelector, "write it into that"},
		"a window of a query":       {of(TriggerQuery, query, TriggerWindow, "1m"), TriggerWindow, "write it into that"},
		"a metric that is none":     {of(TriggerMetric, "requests"), TriggerMetric, "istio-requests-per-second"},
		"a selector that is none":   {of(TriggerMetric, "istio-error-ratio", TriggerSelector, "a=b=c"), TriggerSelector, "write it as"},
		"a reporter that is none":   {of(TriggerMetric, "istio-error-ratio", TriggerSelector, "reporter=me"), TriggerSelector, "destination, source or waypoint"},
		"another namespace":         {of(TriggerMetric, "istio-error-ratio", TriggerSelector, "destination_workload_namespace=x"), TriggerSelector, "limited to the namespace"},
		"a window that is none":     {of(TriggerMetric, "istio-error-ratio", TriggerWindow, "long"), TriggerWindow, "30s"},
		"a window with spaces":      {of(TriggerMetric, "istio-error-ratio", TriggerWindow, "1 m"), TriggerWindow, "30s"},
		"two windows":               {of(TriggerMetric, "istio-error-ratio", TriggerWindow, "1m", TriggerSelector, "window=2m"), TriggerWindow, "leave one of them out"},
		"no threshold":              {of(TriggerQuery, query, TriggerThreshold, ""), TriggerThreshold, "what one replica should have"},
		"a threshold in words":      {of(TriggerQuery, query, TriggerThreshold, "ten"), TriggerThreshold, "not a number"},
		"a threshold of 0":          {of(TriggerQuery, query, TriggerThreshold, "0"), TriggerThreshold, "not above 0"},
		"a negative activation":     {of(TriggerQuery, query, TriggerActivation, "-1"), TriggerActivation, "from 0 on"},
		"an activation that is NaN": {of(TriggerQuery, query, TriggerActivation, "NaN"), TriggerActivation, "from 0 on"},
		"a surge window":            {of(TriggerQuery, query, TriggerSurgeWindow, "1h"), TriggerSurgeWindow, "from 1s to 30s"},
		"a surge action":            {of(TriggerQuery, query, TriggerSurgeAction, "jump"), TriggerSurgeAction, "off, observe or scale"},
		"a key that is misspelt":    {of(TriggerQuery, query, "treshold", "1"), "treshold", "threshold"},
	} {
		t.Run(name, func(t *testing.T) {
			read, err := ReadTrigger("test", test.metadata)
			var bad *TriggerError
			if !errors.As(err, &bad) || bad.Key != test.key || !strings.Contains(bad.Why, test.why) || !strings.Contains(err.Error(), test.key) {
				t.Errorf("%+v, %v", read, err)
			}
		})
	}
}

// FuzzTrigger: whatever the metadata says, a trigger has an expression that parses and a target
// that replicas can follow from, or the error names a key of it.
func FuzzTrigger(f *testing.F) {
	for _, seed := range []map[string]string{
		of(TriggerQuery, query), of(TriggerMetric, "istio-error-ratio", TriggerSelector, "a in (b,c),reporter=source", TriggerWindow, "2m"),
		of(TriggerMetric, "istio-requests-per-second", TriggerThreshold, "1e18", TriggerActivation, "5m", TriggerSurgeWindow, "off"),
	} {
		f.Add(seed[TriggerQuery], seed[TriggerMetric], seed[TriggerSelector], seed[TriggerWindow], seed[TriggerThreshold], seed[TriggerActivation], seed[TriggerSurgeWindow], "aKey", "x")
	}
	f.Fuzz(func(t *testing.T, query, metric, selector, window, threshold, activation, surge, key, value string) {
		metadata := of(TriggerQuery, query, TriggerMetric, metric, TriggerSelector, selector, TriggerWindow, window, TriggerThreshold, threshold, TriggerActivation, activation, TriggerSurgeWindow, surge, key, value)
		before := maps.Clone(metadata)
		read, err := ReadTrigger("test", metadata)
		if !maps.Equal(before, metadata) {
			t.Fatal("the metadata has changed")
		}
		if err != nil {
			var bad *TriggerError
			if !errors.As(err, &bad) || bad.Why == "" {
				t.Fatalf("%v", err)
			}
			return
		}
		if read.Metric == "" || Parse(read.Expr).Tree == nil || read.Threshold.MilliValue() <= 0 || !(read.Activation >= 0) {
			t.Fatalf("%+v of %v", read, metadata)
		}
	})
}
