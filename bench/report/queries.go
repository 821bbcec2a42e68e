package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/meshpulse/meshpulse/bench/standalone"
)

// queries are PromQL expressions in the annotations of HPAs: that is how meshpulse is asked.
type queries struct {
	names map[string]string // by expression
	order []string
}

func newQueries() *queries { return &queries{names: map[string]string{}} }

func (qs *queries) add(expr string) {
	if _, ok := qs.names[expr]; !ok {
		qs.names[expr] = fmt.Sprintf("q%d", len(qs.order))
		qs.order = append(qs.order, expr)
	}
}

// write makes the folder with the HPAs' files.
func (qs *queries) write(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	var annotations, metrics strings.Builder
	for _, expr := range qs.order {
		name := qs.names[expr]
		fmt.Fprintf(&annotations, "    metric-config.external.prometheus-query.prometheus/%s: '%s'\n", name, strings.ReplaceAll(expr, "'", "''"))
		fmt.Fprintf(&metrics, "  - {type: External, external: {metric: {name: prometheus-query, selector: {matchLabels: {query-name: %s}}}, "+
			"target: {type: Value, value: \"1\"}}}\n", name)
	}
	hpa := fmt.Sprintf(`apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: asked
  namespace: test
  annotations:
%sspec:
  maxReplicas: 5
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: asked}
  metrics:
%s`, annotations.String(), metrics.String())
	return os.WriteFile(filepath.Join(dir, "asked.yaml"), []byte(hpa), 0o600)
}

// ask asks for the one value of an expression that was added.
func (qs *queries) ask(ctx context.Context, server *standalone.Server, expr string) (float64, error) {
	values, err := server.Values(ctx, "test", "prometheus-query", "query-name="+qs.names[expr])
	if err != nil {
		return 0, fmt.Errorf("%s: %w", expr, err)
	}
	if len(values) != 1 {
		return 0, fmt.Errorf("%s: %d values", expr, len(values))
	}
	return values[0].Value.AsApproximateFloat64(), nil
}
