package chaos

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
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/retry"

	"github.com/meshpulse/meshpulse/bench/fleet"
	"github.com/meshpulse/meshpulse/bench/lab/link"
	"github.com/meshpulse/meshpulse/bench/lab/proc"
)

// Inject lets every fault of the schedule happen at its time from begin on, and returns when the
// last is over. Each is told to done when it is over, with why it could not be done.
func (h *Hands) Inject(ctx context.Context, begin time.Time, s Schedule, done func(Fault, error)) {
	var all sync.WaitGroup
	defer all.Wait()
	for _, f := range s.Faults {
		if !proc.Sleep(ctx, time.Until(begin.Add(f.At))) {
			return
		}
		all.Go(func() {
			slog.Info("fault", "what", f.String())
			err := h.do(ctx, f)
			if err != nil && ctx.Err() == nil {
				slog.Error("fault could not be done", "what", f.String(), "err", err)
			} else {
				err = nil
			}
			done(f, err)
		})
	}
}

// do does a fault from its beginning to its end.
func (h *Hands) do(ctx context.Context, f Fault) error {
	switch f.Kind {
	case KillMeshpulse:
		h.system.Replicas[f.Replica].Kill()
		proc.Sleep(ctx, f.For)
		return h.system.Replicas[f.Replica].Launch()
	case StopReplica:
		return h.stopReplica(ctx, f)
	case CutFromPeers, CutFromSidecars:
		return h.cutOff(ctx, f)
	case KillAPIServer:
		h.system.Cluster.KillAPIServer()
		proc.Sleep(ctx, f.For)
		return h.system.Cluster.RestartAPIServer(ctx)
	case KillSidecar:
		return h.killSidecar(ctx, f)
	case CutStreams, StallStreams, RefuseHalf, Garble, StepClock:
		return h.disturb(ctx, f)
	case DeletePods, NeverReady:
		return h.deleteReady(ctx, f)
	case AddPods:
		return h.addPods(ctx, f)
	case FillBudget:
		return h.fillBudget(ctx, f)
	case ReplaceCertificates:
		return h.replaceCertificates(ctx, f)
	case DeafWatches:
		return h.deafen(ctx, f)
	case SecondStream:
		return h.secondStream(ctx, f)
	case ForgedFlush:
		return h.forgeFlush(ctx, f)
	case ExpireCertificate:
		return h.expireCertificate(ctx, f)
	case AuthorityAway:
		h.system.CA.leave()
		proc.Sleep(ctx, f.For)
		return h.system.CA.back()
	case ChangeRoot:
		return h.system.CA.changeRoot(func() { proc.Sleep(ctx, f.For/2) })
	case OtherIdentity:
		return h.otherIdentity(ctx, f)
	}
	return fmt.Errorf("unknown fault %q", f.Kind)
}

// stopReplica has a replica do nothing for a while.
func (h *Hands) stopReplica(ctx context.Context, f Fault) error {
	r := h.system.Replicas[f.Replica]
	if err := r.Pause(true); err != nil {
		return err
	}
	proc.Sleep(ctx, f.For)
	return r.Pause(false)
}

// cutOff lets nobody talk to a replica over some of its links, nor it to others.
func (h *Hands) cutOff(ctx context.Context, f Fault) error {
	var struck []*link.Link
	for i, r := range h.system.Replicas {
		switch own := i == f.Replica; {
		case f.Kind == CutFromSidecars && own:
			struck = append(struck, r.Sidecars)
		case f.Kind == CutFromPeers && (own && f.Half != Second || !own && f.Half != First):
			struck = append(struck, r.Peers)
		}
	}
	cut := (*link.Link).Refuse
	if f.Seed%2 == 0 { // as where packets vanish, and not as where nobody listens
		cut = func(l *link.Link, on bool) error { l.Stall(on); return nil }
	}
	var errs []error
	for _, l := range struck {
		errs = append(errs, cut(l, true))
	}
	proc.Sleep(ctx, f.For)
	for _, l := range struck {
		errs = append(errs, cut(l, false))
	}
	return errors.Join(errs...)
}

// struck are the links of the lanes and halves that a fault strikes; gateways are of the first.
func (h *Hands) struck(f Fault) []*link.Link {
	var all []*link.Link
	for i, namespace := range h.system.Namespaces {
		pair := h.links[namespace]
		if f.Lane >= 0 && f.Lane != i {
			continue
		}
		if f.Half != Second {
			all = append(all, pair[0], pair[2])
		}
		if f.Half != First {
			all = append(all, pair[1])
		}
	}
	return all
}

// disturb is what goes wrong on links.
func (h *Hands) disturb(ctx context.Context, f Fault) error {
	var errs []error
	var undo []func()
	for _, l := range h.struck(f) {
		switch f.Kind {
		case StallStreams:
			l.Stall(true)
			undo = append(undo, func() { l.Stall(false) })
		case RefuseHalf:
			errs = append(errs, l.Refuse(true))
			undo = append(undo, func() { errs = append(errs, l.Refuse(false)) })
		case Garble:
			undo = append(undo, l.Change(link.Garble(f.Seed)))
		case StepClock:
			undo = append(undo, l.Change(link.ShiftClock(f.Step)))
		}
	}
	if f.Kind == CutStreams {
		h.cutAgainAndAgain(ctx, f)
	} else {
		proc.Sleep(ctx, f.For)
	}
	for _, u := range undo {
		u()
	}
	return errors.Join(errs...)
}

// cutAgainAndAgain resets the connections at once and then every half to eight seconds.
func (h *Hands) cutAgainAndAgain(ctx context.Context, f Fault) {
	random := rand.New(rand.NewPCG(f.Seed, 0))
	for end := time.Now().Add(f.For); ; {
		for _, l := range h.struck(f) {
			l.Cut()
		}
		pause := 500*time.Millisecond + time.Duration(random.Int64N(int64(7500*time.Millisecond)))
		if time.Now().Add(pause).After(end) || !proc.Sleep(ctx, pause) {
			proc.Sleep(ctx, time.Until(end))
			return
		}
	}
}

// ready are the lane's pods that are, by name.
func (h *Hands) ready(f Fault) (namespace string, pods []string) {
	namespace = h.system.Namespaces[f.Lane]
	for _, s := range h.system.Agent().Sidecars() {
		if s.Namespace == namespace && s.Ready {
			pods = append(pods, s.Pod)
		}
	}
	random := rand.New(rand.NewPCG(f.Seed, 0))
	random.Shuffle(len(pods), func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
	return namespace, pods
}

func (h *Hands) killSidecar(ctx context.Context, f Fault) error {
	namespace, pods := h.ready(f)
	if len(pods) == 0 {
		return errors.New("no pod is ready")
	}
	return h.system.Agent().KillSidecar(ctx, namespace, pods[0], f.For)
}

// deleteReady deletes pods, never the last one that is ready: that there is no load any more would
// be true.
func (h *Hands) deleteReady(ctx context.Context, f Fault) error {
	namespace, pods := h.ready(f)
	if f.Kind == NeverReady {
		defer h.system.Agent().HoldBack(namespace)()
	}
	if len(pods) < 2 {
		return errors.New("fewer than two pods are ready")
	}
	for _, pod := range pods[:min(max(1, f.Count), len(pods)-1)] {
		if err := h.system.Cluster.Client.CoreV1().Pods(namespace).Delete(ctx, pod, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	proc.Sleep(ctx, f.For)
	return nil
}

// addPods scales up as a person does. The HPA takes it back.
func (h *Hands) addPods(ctx context.Context, f Fault) error {
	deployments := h.system.Cluster.Client.AppsV1().Deployments(h.system.Namespaces[f.Lane])
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		scale, err := deployments.GetScale(ctx, h.system.Workload, metav1.GetOptions{})
		if err != nil {
			return err
		}
		scale.Spec.Replicas += int32(f.Count)
		_, err = deployments.UpdateScale(ctx, h.system.Workload, scale, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	proc.Sleep(ctx, f.For)
	return nil
}

// fillBudget has ten simulated sidecars of other workloads report 4,000 series.
func (h *Hands) fillBudget(ctx context.Context, f Fault) error {
	others, err := fleet.New(fleet.Config{Target: h.flood.Address(), Pods: 10, LabelSets: 100, Interval: time.Second})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, f.For)
	defer cancel()
	others.Run(ctx)
	return nil
}

// replaceCertificates replaces the certificate of the API's port, and the mesh's roots. Between the
// two files of a pair everyone has to connect anew, and again when both are there.
func (h *Hands) replaceCertificates(ctx context.Context, f Fault) error {
	certificate, key, err := h.system.Cluster.CA.Issue(h.system.Names[0], nil, h.system.Names)
	if err != nil {
		return err
	}
	write := func(name string, b []byte) error {
		var errs []error
		for _, r := range h.system.Replicas {
			errs = append(errs, os.WriteFile(filepath.Join(r.Dir, name), b, 0o600))
		}
		return errors.Join(errs...)
	}
	if err := errors.Join(write("serving.crt", certificate), h.system.CA.garbleRoots()); err != nil {
		return err
	}
	h.cutAll()
	proc.Sleep(ctx, f.For)
	err = errors.Join(write("serving.key", key), h.system.CA.tellRoots())
	h.cutAll()
	return err
}

// expireCertificate has what a lane's links show end. They connect anew with it, or they would go
// on with the one before.
func (h *Hands) expireCertificate(ctx context.Context, f Fault) error {
	namespace := h.system.Namespaces[f.Lane]
	account := h.accounts[namespace]
	if err := account.endsAfter(f.For / 4); err != nil {
		return err
	}
	defer account.release()
	for half := range 2 {
		if proves(f.Lane, half) {
			h.links[namespace][half].Cut()
		}
	}
	proc.Sleep(ctx, f.For)
	return nil
}

func (h *Hands) cutAll() {
	for _, links := range h.links {
		for _, l := range links {
			l.Cut()
		}
	}
}

// deafen takes meshpulse's right to list and watch away and cuts its connections to the API server:
// what it reads again from then on is refused, and what it knows grows old.
func (h *Hands) deafen(ctx context.Context, f Fault) error {
	deaf := func(verb string) bool { return verb == "list" || verb == "watch" }
	var before []rbacv1.PolicyRule
	err := h.changeRole(ctx, func(role *rbacv1.ClusterRole) {
		before = role.DeepCopy().Rules
		for i := range role.Rules {
			role.Rules[i].Verbs = slices.DeleteFunc(role.Rules[i].Verbs, deaf)
		}
		role.Rules = slices.DeleteFunc(role.Rules, func(p rbacv1.PolicyRule) bool { return len(p.Verbs) == 0 })
	})
	if err == nil {
		proc.Sleep(ctx, time.Second) // until the API server's authoriser has seen it
		h.system.API.Cut()
		proc.Sleep(ctx, f.For)
	}
	if before == nil {
		return err
	}
	return errors.Join(err, h.giveBack(ctx, before))
}

// giveBack gives meshpulse's rights back, however long another fault keeps the API server away
// meanwhile: a fault ends when it was said to.
func (h *Hands) giveBack(ctx context.Context, rules []rbacv1.PolicyRule) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, time.Second, 2*time.Minute, true, func(ctx context.Context) (bool, error) {
		last = h.changeRole(ctx, func(role *rbacv1.ClusterRole) { role.Rules = rules })
		return last == nil, nil
	})
	return errors.Join(err, last)
}

// changeRole changes what meshpulse's service account may do.
func (h *Hands) changeRole(ctx context.Context, change func(*rbacv1.ClusterRole)) error {
	roles := h.system.Cluster.Client.RbacV1().ClusterRoles()
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
