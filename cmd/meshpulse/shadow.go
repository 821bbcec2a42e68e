package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

const shadowText = `Shows how far HPAs' metrics have been from what another says of them, the adapter of --shadow or the Prometheus of
--shadow-prometheus, over the last 240 comparisons: how many agree, to a tenth; by how many the HPA would have asked for
other replicas; and of the largest difference both values, the ages of their newest samples, the replicas that each
would ask for, when it was, and its likely reason.

  meshpulse shadow report -A                      those of all namespaces
  meshpulse shadow report -n test -o json         for scripts: items[].metrics[].shadow`

// shadowReport shows what comparisons tell.
func shadowReport(ctx context.Context, args []string, c console) error {
	a := newAsking("shadow", shadowText, true, c)
	if err := a.parse(args); err != nil {
		return err
	}
	if !slices.Equal(a.flags.Args(), []string{"report"}) {
		return usageError{fmt.Errorf("shadow takes the word report, not %q: meshpulse shadow report", a.flags.Args())}
	}
	namespace, err := a.namespace()
	if err != nil {
		return err
	}
	var list explain.List
	if shown, err := a.answered(ctx, &list, path(namespace, "explanations")); shown || err != nil {
		return err
	}
	return a.print(strings.Join(explain.ShadowReport(list.Items, a.width()), "\n") + "\n")
}
