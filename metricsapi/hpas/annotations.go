package hpas

import (
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	annotationPrefix = "metric-config."
	ownPrefix        = "meshpulse.io/"
	ourCollector     = "prometheus"

	// legacyMetric is the metric of the legacy form, whose selector names the query: query-name: X.
	legacyMetric = "prometheus-query"
	queryNameKey = "query-name"
	// queryKey is the key that holds the PromQL in the new form, whose selector says type:
	// prometheus.
	queryKey = "query"
	typeKey  = "type"
	// kedaKey is in the selector of every metric that KEDA serves, in the HPAs that it writes.
	kedaKey = "scaledobject.keda.sh/name"
)

// annotated is what an HPA's annotations say, in the grammar of kube-metrics-adapter:
// metric-config.<kind>.<metricName>.<collector>/<key>, four parts on dots, two on the slash.
type annotated struct {
	// legacy holds the PromQL of the legacy form by query name.
	legacy map[string]string
	// queries holds the PromQL of the new form by metric name, as the annotation writes it.
	queries map[string]string
	// foreign holds the external metrics that another collector (json-path, zmon, …) is configured
	// for, in lower case.
	foreign map[string]bool
	// others: something in the HPA is configured for another collector.
	others bool
	// objects holds what is said of Object metrics, by metric.
	objects map[string]*objectNotes
	// surge is what meshpulse's own keys say.
	surge Surge

	problems []Problem
}

// SameAnnotations says whether two HPAs have the same of the annotations that are read.
func SameAnnotations(a, b map[string]string) bool {
	read := func(all map[string]string) map[string]string {
		all = maps.Clone(all)
		maps.DeleteFunc(all, func(key, _ string) bool {
			return !strings.HasPrefix(key, annotationPrefix) && !strings.HasPrefix(key, ownPrefix)
		})
		return all
	}
	return maps.Equal(read(a), read(b))
}

// readAnnotations never fails: what cannot be read is a problem, and the rest counts. Keys are read
// in order, so that the problems of one HPA are always the same.
func readAnnotations(annotations map[string]string) annotated {
	a := annotated{legacy: map[string]string{}, queries: map[string]string{}, foreign: map[string]bool{}, objects: map[string]*objectNotes{}}
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		value := strings.TrimSpace(annotations[key]) // a block of YAML ends with a line's end
		switch {
		case strings.HasPrefix(key, annotationPrefix):
			a.readMetricConfig(key, value)
		case strings.HasPrefix(key, ownPrefix):
			a.readOwn(key, value)
		}
	}
	return a
}

// query finds the name under which a metric of the spec has its query: the very name, else one that
// differs by case only.
func (a *annotated) query(metric string) (name string, ok bool) {
	if _, ok = a.queries[metric]; ok {
		return metric, true
	}
	for _, name := range slices.Sorted(maps.Keys(a.queries)) {
		if strings.EqualFold(name, metric) {
			return name, true
		}
	}
	return "", false
}

func (a *annotated) problem(reason, format string, args ...any) {
	a.problems = append(a.problems, Problemf(reason, format, args...))
}

func (a *annotated) readMetricConfig(key, value string) {
	const grammar = "metric-config.<kind>.<metricName>.<collector>/<key>"
	path, name, slash := strings.Cut(key, "/")
	parts := strings.Split(path, ".")
	switch {
	case !slash || strings.Contains(name, "/"):
		a.problem(ReasonBadAnnotation, "annotation %s does not fit %s: it needs exactly one slash", key, grammar)
		return
	case len(parts) != 4:
		a.problem(ReasonBadAnnotation, "annotation %s does not fit %s: it has %d parts before the slash where four are needed (a metric name has no dots)", key, grammar, len(parts))
		return
	case slices.Contains(parts, "") || name == "":
		a.problem(ReasonBadAnnotation, "annotation %s does not fit %s: a part is empty", key, grammar)
		return
	}
	kind, metric, collector := parts[1], parts[2], parts[3]
	switch {
	case collector != ourCollector:
		a.others = true
		if kind == "external" {
			a.foreign[strings.ToLower(metric)] = true
		}
	case kind == "external":
		a.readExternal(key, metric, name, value)
	case kind == "object":
		a.readObject(metric, name, value)
	default:
		a.problem(ReasonBadAnnotation, "annotation %s has no effect: the prometheus collector serves kind external, not %s", key, kind)
	}
}

func (a *annotated) readExternal(key, metric, name, value string) {
	switch name {
	case "interval":
		if d, err := time.ParseDuration(value); err != nil || d <= 0 {
			a.problem(ReasonBadAnnotation, "annotation %s: %q is not a duration such as 30s", key, value)
		}
	case "prometheus-server", "prometheus-server-alias":
		a.problem(ReasonIgnoredAnnotation, "annotation %s has no effect: queries are answered from what the sidecars report, no Prometheus server is asked. Remove it", key)
	default:
		switch {
		case value == "":
			a.problem(ReasonBadAnnotation, "annotation %s is empty: give a PromQL expression", key)
		case strings.EqualFold(metric, legacyMetric):
			a.legacy[name] = value
		case name == queryKey:
			a.queries[metric] = value
		default:
			a.problem(ReasonBadAnnotation, "annotation %s: the key %s is not known for an external metric: use query (or interval); only the metric %s takes the name of a query there", key, name, legacyMetric)
		}
	}
}

// readOwn reads meshpulse's own keys. One that cannot be read leaves the default.
func (a *annotated) readOwn(key, value string) {
	own := strings.TrimPrefix(key, ownPrefix)
	switch own {
	case "surge-window", "surge-ratio", "surge-action":
	case "serve":
		if value != "true" && value != "false" {
			a.problem(ReasonBadAnnotation, "annotation %s: %q is neither true nor false", key, value)
		}
		return
	case "readable-by":
		a.problem(ReasonBadAnnotation, "annotation %s has no effect on an HPA: it is set on the namespace that is read, by who owns that", key)
		return
	default:
		a.problem(ReasonBadAnnotation, "annotation %s is not known: meshpulse.io/ has surge-window, surge-ratio, surge-action and serve", key)
		return
	}
	if want := a.surge.read(own, value); want != "" {
		a.problem(ReasonBadAnnotation, "annotation %s: %q is not %s", key, value, want)
	}
}
