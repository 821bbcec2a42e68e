package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

const topText = `Shows every metric of every HPA at a glance, the worst first.

  meshpulse top -A                                those of all namespaces
  meshpulse top -n test -w                        those of one, until Ctrl-C
  meshpulse top -A -o json                        for scripts: items[].troubles says what is wrong`

// watchEvery is how often top -w looks: a sidecar flushes every 5 s.
const watchEvery = 2 * time.Second

// top shows HPAs at a glance.
func top(ctx context.Context, args []string, c console) error {
	a := newAsking("top", topText, true, c)
	watch := a.flags.BoolP("watch", "w", false, "look again every 2 s, until Ctrl-C")
	if err := a.parse(args); err != nil {
		return err
	}
	switch {
	case a.flags.NArg() > 0:
		return usageError{fmt.Errorf("top takes flags only, not %q", a.flags.Arg(0))}
	case *watch && a.output != "":
		return usageError{errors.New("--watch draws, so it takes no --output")}
	}
	namespace, err := a.namespace()
	if err != nil {
		return err
	}
	if !*watch {
		return a.top(ctx, namespace, "")
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	const homeAndClear = "\x1b[H\x1b[J"
	for {
		if err := a.top(ctx, namespace, homeAndClear); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// top prints the table once, after what goes before it.
func (a *asking) top(ctx context.Context, namespace, before string) error {
	var list explain.List
	if shown, err := a.answered(ctx, &list, path(namespace, "explanations")); shown || err != nil {
		return err
	}
	lines := explain.Table(list.Items, namespace == "", a.width())
	if len(list.Items) == 0 {
		lines = []string{"no HPA that is meshpulse's in namespace " + namespace + ": -A shows all namespaces"}
		if namespace == "" {
			lines = []string{"no HPA that is meshpulse's"}
		}
	}
	if height := a.height(); before != "" && height > 1 {
		lines = lines[:min(len(lines), height-1)]
	}
	if _, err := io.WriteString(a.console.out, before); err != nil {
		return err
	}
	return a.print(strings.Join(lines, "\n") + "\n")
}

// height is that of the terminal, 0 where the output is none.
func (a *asking) height() int {
	if f, ok := a.console.out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if _, height, err := term.GetSize(int(f.Fd())); err == nil {
			return height
		}
	}
	return 0
}

const explainText = `Says why an HPA's metrics have the values that they have, and what the controller makes of them. The first three
lines are what is wrong, its cause and its remedy.

  meshpulse explain hpa/podinfo -n test
  meshpulse explain hpa/podinfo -n test --at -2m     an instant that is still kept; pods and replicas as they are now
  meshpulse explain hpa/podinfo -n test --plot       with the decisions of the last hour`

// explainHPA explains one HPA.
func explainHPA(ctx context.Context, args []string, c console) error {
	a := newAsking("explain", explainText, false, c)
	at := a.flags.String("at", "", "an instant: -2m before now, or a time such as 2026-01-02T15:04:05Z")
	plot := a.flags.Bool("plot", false, "draw what was seen, answered, wanted and there in the last hour")
	if err := a.parse(args); err != nil {
		return err
	}
	name, err := hpaName(a.flags.Args())
	if err != nil {
		return usageError{err}
	}
	namespace, err := a.namespace()
	if err != nil {
		return err
	}
	var e explain.Explanation
	if shown, err := a.answered(ctx, &e, path(namespace, "explanations", name), "at", *at); shown || err != nil {
		return err
	}
	text := e.Text()
	if *plot {
		width, height := a.plotSize()
		for i := range e.Metrics {
			m := &e.Metrics[i]
			text += "\n" + explain.Printable(m.Name) + ", the last hour\n" + strings.Join(m.Plot(width, height), "\n") + "\n"
		}
	}
	return a.print(text)
}

// hpaName reads hpa/NAME, hpa NAME or NAME.
func hpaName(args []string) (string, error) {
	if len(args) == 2 && strings.HasPrefix("horizontalpodautoscalers", args[0]) || len(args) == 2 && args[0] == "hpa" {
		return args[1], nil
	}
	if len(args) != 1 {
		return "", errors.New("name one HPA: explain hpa/NAME")
	}
	kind, name, found := strings.Cut(args[0], "/")
	switch {
	case !found:
		return args[0], nil
	case name == "" || kind != "hpa" && kind != "horizontalpodautoscaler" && kind != "horizontalpodautoscalers":
		return "", fmt.Errorf("%q is no HPA: explain hpa/NAME", args[0])
	}
	return name, nil
}

const queryText = `Evaluates PromQL over what is kept, of all namespaces: that takes the right to create queries of ` + explain.Group + `.

  meshpulse query 'sum by (destination_workload) (rate(istio_requests_total[1m]))'
  meshpulse query 'sum(rate(istio_requests_total[1m]))' --range 5m --step 5s --plot`

// query evaluates an expression.
func query(ctx context.Context, args []string, c console) error {
	a := newAsking("query", queryText, false, c)
	ago := a.flags.Duration("at", 0, "how long before now, such as -2m")
	over := a.flags.Duration("range", 0, "instants over so long, which end there")
	step := a.flags.Duration("step", 5*time.Second, "the time between them")
	plot := a.flags.Bool("plot", false, "draw the range")
	if err := a.parse(args); err != nil {
		return err
	}
	switch {
	case a.flags.NArg() != 1:
		return usageError{errors.New("give one PromQL expression, in quotes")}
	case *ago > 0:
		return usageError{fmt.Errorf("--at %s is to come: write -%s", *ago, *ago)}
	case *plot && *over == 0:
		return usageError{errors.New("--plot draws a --range, such as --range 5m")}
	}
	q := explain.Query{
		TypeMeta: metav1.TypeMeta{APIVersion: explain.APIVersion, Kind: "Query"},
		Spec:     explain.QuerySpec{Query: a.flags.Arg(0), AgoSeconds: (-*ago).Seconds(), RangeSeconds: over.Seconds()},
	}
	if *over > 0 {
		q.Spec.StepSeconds = step.Seconds()
	}
	if err := q.Spec.Validate(); err != nil {
		return usageError{err}
	}
	body, err := a.post(ctx, path("", "queries"), q)
	if err != nil {
		return err
	}
	if shown, err := a.shown(body, &q); shown || err != nil {
		return err
	}
	if q.Status == nil {
		return fmt.Errorf("the answer to the query has no status: %s", notOurs)
	}
	return a.print(a.queryText(q.Status, *plot))
}

// manyPlots is how many series a plot has.
const manyPlots = 8

func (a *asking) queryText(s *explain.QueryStatus, plot bool) string {
	if len(s.Series) == 0 {
		return fmt.Sprintf("no series; %d pods that could have some report, %d are silent\n", s.Reporting, s.Silent)
	}
	text := strings.Join(s.Table(a.width()), "\n") + "\n"
	if !plot {
		return text
	}
	var drawn []explain.Series
	for i, series := range s.Series[:min(len(s.Series), manyPlots)] {
		d := explain.Series{Sign: rune('a' + i)}
		for _, p := range series.Points {
			if v, err := strconv.ParseFloat(p.Value, 64); err == nil {
				d.Times, d.Values = append(d.Times, p.At), append(d.Values, v)
			}
		}
		drawn = append(drawn, d)
	}
	width, height := a.plotSize()
	text += "\nin the order of the table: a, b, …\n" + strings.Join(explain.Plot(width, height, drawn...), "\n") + "\n"
	if n := len(s.Series) - manyPlots; n > 0 {
		text += fmt.Sprintf("%d more are not drawn\n", n)
	}
	return text
}

const podsText = `Shows every sidecar that reports, and those that should and do not, the doubtful ones first.

  meshpulse pods -n test`

// pods shows sidecars.
func pods(ctx context.Context, args []string, c console) error {
	a := newAsking("pods", podsText, true, c)
	if err := a.parse(args); err != nil {
		return err
	}
	if a.flags.NArg() > 0 {
		return usageError{fmt.Errorf("pods takes flags only, not %q", a.flags.Arg(0))}
	}
	namespace, err := a.namespace()
	if err != nil {
		return err
	}
	var list explain.Sidecars
	if shown, err := a.answered(ctx, &list, path(namespace, "pods")); shown || err != nil {
		return err
	}
	if len(list.Items) == 0 {
		return a.print("no sidecar reports, and none should: -A shows all namespaces\n")
	}
	return a.print(strings.Join(list.Table(namespace == "", a.width()), "\n") + "\n")
}
