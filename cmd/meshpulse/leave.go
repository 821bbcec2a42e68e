package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
)

const leaveText = `Waits, before a pod of several replicas ends, until others have the history that it has: its preStop hook.

  meshpulse leave --statefulset NAMESPACE/NAME

At a scale-in, where the pod's number is not among those that are left, it waits; who comes after it is written to
meanwhile. At a rolling update, or when its node is drained, it returns at once: the pod comes back.`

// leaving is a replica that is about to end.
type leaving struct {
	name        string // its pod's
	statefulSet string // NAMESPACE/NAME
	wait        time.Duration
	// replicas is how many the StatefulSet is to have.
	replicas func(ctx context.Context, statefulSet string) (int32, error)
}

// leave is the command.
func leave(ctx context.Context, args []string, c console) error {
	var l leaving
	var kubeconfig string
	f := newFlags("leave", leaveText, c)
	f.StringVar(&l.statefulSet, "statefulset", "", "NAMESPACE/NAME of the replicas' StatefulSet")
	f.StringVar(&l.name, "replica-name", "", "the pod's name, which ends in its number (default $POD_NAME, else the host's)")
	f.DurationVar(&l.wait, "retention", 5*time.Minute, "how long to wait: --retention of serve")
	f.StringVar(&kubeconfig, "kubeconfig", "", "way to the API server (default: the pod's service account)")
	if err := parse(f, args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return usageError{fmt.Errorf("leave takes flags only, not %q", f.Arg(0))}
	}
	if namespace, name, ok := strings.Cut(l.statefulSet, "/"); !ok || namespace == "" || name == "" {
		return usageError{fmt.Errorf("--statefulset %q: give NAMESPACE/NAME", l.statefulSet)}
	}
	if l.name == "" {
		var err error
		if l.name, err = podName(); err != nil {
			return fmt.Errorf("--replica-name: %w", err)
		}
	}
	l.replicas = func(ctx context.Context, set string) (int32, error) {
		return cluster.StatefulSetReplicas(ctx, kubeconfig, set)
	}
	return l.run(ctx)
}

// run waits where the replica does not come back.
func (l leaving) run(ctx context.Context) error {
	ordinal, err := strconv.ParseUint(l.name[strings.LastIndexByte(l.name, '-')+1:], 10, 31)
	if err != nil {
		return usageError{fmt.Errorf("--replica-name %q does not end in a number, as the pods of a StatefulSet do", l.name)}
	}
	replicas, err := l.replicas(ctx, l.statefulSet)
	if err != nil { // as if its node were drained: nothing says that it does not come back
		return err
	}
	if int32(ordinal) < replicas {
		return nil
	}
	select {
	case <-ctx.Done():
	case <-time.After(l.wait):
	}
	return nil
}
