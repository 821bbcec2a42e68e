package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/bench/documents"
)

// guide is one of the README's: a command of it, its HPA, and what it says that becomes of the
// replicas.
type guide struct {
	command, hpa string
	// least and most are the replicas that its load asks for.
	least, most int
}

// processed is the query of the guides' HPAs that tells their requests.
const processed = "processed-requests-per-second"

// elsewhere is the namespace in which the second guide runs, beside the first.
const elsewhere = "test-2"

// The first replicas are asked for when a [1m] rate has seen most of the load; pods start within
// seconds. On a machine that is busy with something else all of it takes longer.
const scaled = 150 * time.Second

// requestsGuide is the first guide as far as it scales by requests and latency.
func (r *reader) requestsGuide() []step {
	requests := guide{documents.ByRequests, "podinfo-total", 2, 2}
	latency := guide{documents.ByLatency, "podinfo-latency-avg", 5, 5} // its maxReplicas: "any traffic asks for maxReplicas"
	return []step{
		{name: "guide 1, by requests: hey at 20/s, 1 -> 2 replicas", do: func(ctx context.Context) error { return r.follow(ctx, requests) }},
		{name: "guide 1, hey -q 15 at 30/s, 2 -> 3 replicas", do: func(ctx context.Context) error { return r.faster(ctx, requests) }},
		{name: "the right to act at a surge: in one namespace by a RoleBinding, then as the documents say", do: r.mayAct},
		{name: "guide 1, by latency: as written any traffic asks for maxReplicas, 3 -> 5, and an event says why", do: func(ctx context.Context) error {
			if err := r.follow(ctx, latency); err != nil {
				return err
			}
			return r.eventSaid(ctx, latency.hpa, "MillisecondsTarget")
		}},
		{name: "latency-p95.yaml in its place: answered, held while the window is not known", do: r.p95},
		{name: "hey was answered by 200 alone", do: func(context.Context) error { return r.stopLoad() }},
	}
}

// workloadGuide is the second guide, in a namespace that the first guide's first commands make.
func (r *reader) workloadGuide() []step {
	return []step{
		{name: "the guides' app once more, in namespace " + r.namespace, do: func(ctx context.Context) error {
			block, err := r.documented(documents.ByRequests)
			if err != nil {
				return err
			}
			for _, c := range block.Commands[:slices.IndexFunc(block.Commands, func(c documents.Command) bool {
				return strings.Contains(c.Text, documents.ByRequests)
			})] {
				if strings.Contains(c.Text, "get --raw") {
					continue // says that there is no HPA yet, which is the other reader's to see
				}
				if _, err := r.typed(ctx, c); err != nil {
					return fmt.Errorf("%s: %w", c.Text, err)
				}
			}
			return nil
		}},
		{name: "guide 2, one workload: hey at 50/s, 1 -> 5 or 6 replicas", do: func(ctx context.Context) error {
			if err := r.awaitFirstHPA(ctx); err != nil {
				return err
			}
			if err := r.follow(ctx, guide{documents.OneWorkload, "podinfo", 5, 6}); err != nil {
				return err
			}
			return r.stopLoad()
		}},
	}
}

// awaitFirstHPA waits until the other reader has seen that there is no HPA yet, as the first guide
// says.
func (r *reader) awaitFirstHPA(ctx context.Context) error {
	block, err := r.documented(documents.ByRequests)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(block.Commands, func(c documents.Command) bool { return strings.Contains(c.Text, documents.ByRequests) })
	return r.eventually(ctx, 2*time.Minute, func() error {
		if !r.remembers(block.Commands[i].Text) {
			return fmt.Errorf("nobody has typed %q", block.Commands[i].Text)
		}
		return nil
	})
}

// follow types a guide's commands and waits until its replicas are there.
func (r *reader) follow(ctx context.Context, g guide) error {
	block, err := r.documented(g.command)
	if err != nil {
		return err
	}
	if err := r.stopLoad(); err != nil {
		return err
	}
	if err := r.do(ctx, block); err != nil {
		return err
	}
	return r.scales(ctx, g)
}

// faster replaces the load by one of 15 a second and worker.
func (r *reader) faster(ctx context.Context, g guide) error {
	block, err := r.documented(g.command)
	if err != nil {
		return err
	}
	if err := r.stopLoad(); err != nil {
		return err
	}
	i := slices.IndexFunc(block.Commands, func(c documents.Command) bool { return strings.Contains(c.Text, "-q 10") })
	if i < 0 {
		return fmt.Errorf("%s has no load of -q 10", block)
	}
	if err := r.startLoad(ctx, r.ours(strings.Replace(block.Commands[i].Text, "-q 10", "-q 15", 1))); err != nil {
		return err
	}
	return r.scales(ctx, guide{hpa: g.hpa, least: 3, most: 3})
}

// scales waits until the HPA's replicas are those of the guide and ready.
func (r *reader) scales(ctx context.Context, g guide) error { return r.scalesWithin(ctx, scaled, g) }

func (r *reader) scalesWithin(ctx context.Context, limit time.Duration, g guide) error {
	return r.eventually(ctx, limit, func() error {
		if r.load != nil {
			if err := r.load.Ended(); err != nil {
				return fmt.Errorf("hey: %w", err)
			}
		}
		var deployment struct {
			Status struct{ ReadyReplicas, Replicas int }
		}
		text, err := r.kubectl(ctx, "--namespace="+r.namespace, "get", "deployment", "podinfo", "-o", "json")
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(text), &deployment); err != nil {
			return err
		}
		if ready := deployment.Status.ReadyReplicas; ready < g.least || ready > g.most {
			state, err := r.kubectl(ctx, "--namespace="+r.namespace, "describe", "hpa", g.hpa)
			return errors.Join(err, fmt.Errorf("%d replicas are ready and not %d to %d:\n%s", ready, g.least, g.most, state))
		}
		return nil
	})
}

// mayAct gives the right in one namespace, then in all, looks whether meshpulse has it there and
// nowhere else, and takes the annotation back as the documents say.
func (r *reader) mayAct(ctx context.Context) error {
	may := func(where, want string) error {
		return r.eventually(ctx, 10*time.Second, func() error {
			got, _ := r.kubectl(ctx, "auth", "can-i", "update", "deployments.apps", "--subresource=scale", "--namespace="+where,
				"--as=system:serviceaccount:"+namespace+":meshpulse") // "no" ends with an error
			if strings.TrimSpace(got) != want {
				return fmt.Errorf("meshpulse may scale in %s: %q and not %q", where, got, want)
			}
			return nil
		})
	}
	if _, err := r.sh(ctx, "kubectl apply -f manifests/components/surge-action/role/clusterrole.yaml"); err != nil {
		return err
	}
	block, err := r.documented(documents.ActAtSurge)
	if err != nil {
		return err
	}
	for _, do := range []func() error{
		func() error { return may(theirs, "no") },
		func() error { return r.each(ctx, "create rolebinding meshpulse:surge-action") },
		func() error { return may(theirs, "yes") },
		func() error { return may("default", "no") },
		func() error { return r.do(ctx, block) },
		func() error { return may("default", "yes") },
		func() error { return r.each(ctx, "meshpulse.io/surge-action-") },
	} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// each types every block that has the text in a command.
func (r *reader) each(ctx context.Context, text string) error {
	for _, block := range r.documents {
		if block.Excuse == "" && block.Names(text) {
			if err := r.do(ctx, block); err != nil {
				return err
			}
		}
	}
	return nil
}

// p95 puts the first guide's other latency HPA in the place of the average's. Its query asks five
// minutes back.
func (r *reader) p95(ctx context.Context) error {
	const query = externals + "/namespaces/test/prometheus-query?labelSelector=query-name%3Dp95-latency"
	if _, err := r.sh(ctx, "kubectl -n test delete hpa podinfo-latency-avg && kubectl apply -f manifests/examples/latency-p95.yaml"); err != nil {
		return err
	}
	return r.eventually(ctx, 30*time.Second, func() error {
		answer, err := r.kubectl(ctx, "get", "--raw", query)
		if err == nil && !strings.Contains(answer, "meshpulse_window") {
			err = fmt.Errorf("does not say that the window is not known yet: %s", answer)
		}
		return err
	})
}

// eventSaid is an error when no event of the HPA has the reason.
func (r *reader) eventSaid(ctx context.Context, hpa, reason string) error {
	return r.eventually(ctx, time.Minute, func() error {
		events, err := r.kubectl(ctx, "--namespace="+r.namespace, "get", "events", "--field-selector=involvedObject.name="+hpa, "-o", "jsonpath={.items[*].reason}")
		if err == nil && !strings.Contains(events, reason) {
			err = fmt.Errorf("no event %s of HPA %s: %s", reason, hpa, events)
		}
		return err
	})
}

// makes are commands of which a second one finds what the first has made.
var makes = regexp.MustCompile(`\bcreate (serviceaccount|clusterrolebinding) `)

// observed reads what meshpulse says of its HPAs through a forwarded port, as the documents say,
// until it is what is looked for.
func (r *reader) observed(ctx context.Context, holds func(said string) error) error {
	block, err := r.documented(documents.Observer)
	if err != nil {
		return err
	}
	defer r.endBeside()
	for _, c := range block.Commands {
		if makes.MatchString(c.Text) && r.remembers(c.Text) {
			continue
		}
		do := func() error { _, err := r.typed(ctx, c); return err }
		if strings.HasPrefix(c.Text, "curl") {
			do = func() error {
				return r.eventually(ctx, time.Minute, func() error {
					said, err := r.typed(ctx, c)
					if err == nil {
						err = holds(said)
					}
					return err
				})
			}
		}
		if err := do(); err != nil {
			return fmt.Errorf("%s: %s: %w", block, c.Text, err)
		}
	}
	return nil
}
