package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"github.com/meshpulse/meshpulse/bench/fleet"
	"github.com/meshpulse/meshpulse/bench/lab/chaos"
	"github.com/meshpulse/meshpulse/bench/lab/link"
)

// inject lets every fault of the schedule happen at its time, and returns when the last is over.
func (r *chaosRun) inject(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	for _, f := range r.schedule.Faults {
		if !sleep(ctx, time.Until(r.begin.Add(f.At))) {
			return
		}
		all.Go(func() {
			slog.Info("fault", "what", f.String())
			err := r.do(ctx, f)
			if err != nil && ctx.Err() == nil {
				slog.Error("fault could not be done", "what", f.String(), "err", err)
				r.note(func(s *chaos.Seen) { s.Failed = append(s.Failed, r.lab.withoutRoot(f.String()+": "+err.Error())) })
				return
			}
			r.note(func(s *chaos.Seen) { s.Done[f.Kind]++ })
		})
	}
}

// sleep is false when ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// every calls do at each interval until ctx ends.
func every(ctx context.Context, interval time.Duration, do func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do()
		}
	}
}

// do does a fault from its beginning to its end.
func (r *chaosRun) do(ctx context.Context, f chaos.Fault) error {
	switch f.Kind {
	case chaos.KillMeshpulse:
		r.meshpulse.kill()
		sleep(ctx, f.For)
		return r.meshpulse.launch()
	case chaos.KillAPIServer:
		r.cluster.KillAPIServer()
		sleep(ctx, f.For)
		return r.cluster.RestartAPIServer(ctx)
	case chaos.KillSidecar:
		return r.killSidecar(ctx, f)
	case chaos.CutStreams, chaos.StallStreams, chaos.RefuseHalf, chaos.Garble, chaos.StepClock:
		return r.disturb(ctx, f)
	case chaos.DeletePods, chaos.NeverReady:
		return r.deleteReady(ctx, f)
	case chaos.AddPods:
		return r.addPods(ctx, f)
	case chaos.FillBudget:
		return r.fillBudget(ctx, f)
	case chaos.ReplaceCertificates:
		return r.replaceCertificates(ctx, f)
	case chaos.DeafWatches:
		return r.deafen(ctx, f)
	case chaos.SecondStream:
		return r.secondStream(ctx, f)
	case chaos.ForgedFlush:
		return r.forgeFlush(ctx, f)
	}
	return fmt.Errorf("unknown fault %q", f.Kind)
}

// struck are the links of the lanes and halves that a fault strikes.
func (r *chaosRun) struck(f chaos.Fault) []*link.Link {
	var all []*link.Link
	for i, ln := range r.scenario.Lanes {
		pair := r.links[ln.Namespace]
		if f.Lane >= 0 && f.Lane != i {
			continue
		}
		if f.Half != chaos.Second {
			all = append(all, pair[0])
		}
		if f.Half != chaos.First {
			all = append(all, pair[1])
		}
	}
	return all
}

// disturb is what goes wrong on links.
func (r *chaosRun) disturb(ctx context.Context, f chaos.Fault) error {
	var errs []error
	var undo []func()
	for _, l := range r.struck(f) {
		switch f.Kind {
		case chaos.StallStreams:
			l.Stall(true)
			undo = append(undo, func() { l.Stall(false) })
		case chaos.RefuseHalf:
			errs = append(errs, l.Refuse(true))
			undo = append(undo, func() { errs = append(errs, l.Refuse(false)) })
		case chaos.Garble:
			undo = append(undo, l.Change(link.Garble(f.Seed)))
		case chaos.StepClock:
			undo = append(undo, l.Change(link.ShiftClock(f.Step)))
		}
	}
	if f.Kind == chaos.CutStreams {
		r.cutAgainAndAgain(ctx, f)
	} else {
		sleep(ctx, f.For)
	}
	for _, u := range undo {
		u()
	}
	return errors.Join(errs...)
}

// cutAgainAndAgain resets the connections at once and then every half to eight seconds.
func (r *chaosRun) cutAgainAndAgain(ctx context.Context, f chaos.Fault) {
	random := rand.New(rand.NewPCG(f.Seed, 0))
	for end := time.Now().Add(f.For); ; {
		for _, l := range r.struck(f) {
			l.Cut()
		}
		pause := 500*time.Millisecond + time.Duration(random.Int64N(int64(7500*time.Millisecond)))
		if time.Now().Add(pause).After(end) || !sleep(ctx, pause) {
			sleep(ctx, time.Until(end))
			return
		}
	}
}

// ready are the lane's pods that are, by name.
func (r *chaosRun) ready(f chaos.Fault) (namespace string, pods []string) {
	namespace = r.scenario.Lanes[f.Lane].Namespace
	for _, s := range r.agent.Sidecars() {
		if s.Namespace == namespace && s.Ready {
			pods = append(pods, s.Pod)
		}
	}
	random := rand.New(rand.NewPCG(f.Seed, 0))
	random.Shuffle(len(pods), func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
	return namespace, pods
}

func (r *chaosRun) killSidecar(ctx context.Context, f chaos.Fault) error {
	namespace, pods := r.ready(f)
	if len(pods) == 0 {
		return errors.New("no pod is ready")
	}
	return r.agent.KillSidecar(ctx, namespace, pods[0], f.For)
}

// deleteReady deletes pods, never the last one that is ready: that there is no load any more would
// be true.
func (r *chaosRun) deleteReady(ctx context.Context, f chaos.Fault) error {
	namespace, pods := r.ready(f)
	if f.Kind == chaos.NeverReady {
		defer r.agent.HoldBack(namespace)()
	}
	if len(pods) < 2 {
		return errors.New("fewer than two pods are ready")
	}
	for _, pod := range pods[:min(max(1, f.Count), len(pods)-1)] {
		if err := r.cluster.Client.CoreV1().Pods(namespace).Delete(ctx, pod, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	sleep(ctx, f.For)
	return nil
}

// addPods scales up as a person does. The HPA takes it back.
func (r *chaosRun) addPods(ctx context.Context, f chaos.Fault) error {
	deployments := r.cluster.Client.AppsV1().Deployments(r.scenario.Lanes[f.Lane].Namespace)
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		scale, err := deployments.GetScale(ctx, workload, metav1.GetOptions{})
		if err != nil {
			return err
		}
		scale.Spec.Replicas += int32(f.Count)
		_, err = deployments.UpdateScale(ctx, workload, scale, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	sleep(ctx, f.For)
	return nil
}

// fillBudget has ten simulated sidecars of other workloads report 4,000 series.
func (r *chaosRun) fillBudget(ctx context.Context, f chaos.Fault) error {
	others, err := fleet.New(fleet.Config{Target: r.flood.Address(), Pods: 10, LabelSets: 100, Interval: time.Second})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, f.For)
	defer cancel()
	others.Run(ctx)
	return nil
}

// replaceCertificates replaces those of both ports. Between the two files of a pair everyone has to
// connect anew, and again when both are there.
func (r *chaosRun) replaceCertificates(ctx context.Context, f chaos.Fault) error {
	dir := r.meshpulse.dir
	keys := map[string][]byte{}
	for _, name := range []string{"serving", "ingest"} {
		certificate, key, err := r.cluster.CA.Issue(serverName, nil, []string{serverName, serviceIP, "127.0.0.1"})
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name+".crt"), certificate, 0o600); err != nil {
			return err
		}
		keys[name] = key
	}
	r.cutAll()
	sleep(ctx, f.For)
	for name, key := range keys {
		if err := os.WriteFile(filepath.Join(dir, name+".key"), key, 0o600); err != nil {
			return err
		}
	}
	r.cutAll()
	return nil
}

func (r *chaosRun) cutAll() {
	for _, pair := range r.links {
		pair[0].Cut()
		pair[1].Cut()
	}
}

// deafen takes meshpulse's right to list and watch away and cuts its connections to the API server:
// what it reads again from then on is refused, and what it knows grows old.
func (r *chaosRun) deafen(ctx context.Context, f chaos.Fault) error {
	deaf := func(verb string) bool { return verb == "list" || verb == "watch" }
	var before []rbacv1.PolicyRule
	err := r.changeRole(ctx, func(role *rbacv1.ClusterRole) {
		before = role.DeepCopy().Rules
		for i := range role.Rules {
			role.Rules[i].Verbs = slices.DeleteFunc(role.Rules[i].Verbs, deaf)
		}
		role.Rules = slices.DeleteFunc(role.Rules, func(p rbacv1.PolicyRule) bool { return len(p.Verbs) == 0 })
	})
	if err != nil {
		return err
	}
	sleep(ctx, time.Second) // until the API server's authoriser has seen it
	r.api.Cut()
	sleep(ctx, f.For)
	return r.changeRole(ctx, func(role *rbacv1.ClusterRole) { role.Rules = before })
}

// changeRole changes what meshpulse's service account may do.
func (r *chaosRun) changeRole(ctx context.Context, change func(*rbacv1.ClusterRole)) error {
	roles := r.cluster.Client.RbacV1().ClusterRoles()
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		role, err := roles.Get(ctx, "meshpulse", metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(role)
		_, err = roles.Update(ctx, role, metav1.UpdateOptions{})
		return err
	})
}
