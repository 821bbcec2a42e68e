package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/bench/attack"
	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/process"
)

const (
	attackHold      = 30 * time.Second
	attackRetention = time.Minute
	// attackMemory is GOMEMLIMIT while one attacks, installedMemory as the base sets it, while
	// three do.
	attackMemory, installedMemory = 512 << 20, 900 << 20
	// containerMemory is the limit of the base's container, and containerMost what may be taken of
	// it.
	containerMemory, containerMost = 1 << 30, 960 << 20
	attackTogether                 = 3
	// attackNice is how much the attackers give way: on a real cluster they would have machines of
	// their own.
	attackNice = 5
	// attackLong is how long an attack lasts at defaults: --hold and --retention of 5 minutes, and
	// a minute to see the end of them.
	attackLong = 6 * time.Minute
)

// assault is one run: what attacks, and under which circumstances.
type assault struct {
	order        int
	name, what   string
	attacks      []attack.Attack                             // over the wire
	do           func(ctx context.Context, m *subject) error // what is none, nil if nothing
	memory       int64                                       // GOMEMLIMIT, bytes
	descriptors  int                                         // that meshpulse may have, 0: as many as there are
	lasts, after time.Duration                               // of the attack; of the look at what comes after it
	defaults     bool                                        // of --hold and --retention
	files        bool                                        // against a meshpulse of files
}

// attackAll lets one attack after the other happen, then three together. With names only those, and
// what was seen of the others before stays.
func (l *lab) attackAll(ctx context.Context, long bool, seed uint64, names []string) error {
	dir, err := l.runDir("attack")
	if err != nil {
		return err
	}
	c, err := cluster.Boot(ctx, cluster.Config{Binary: l.controlplane, Dir: dir, HPASync: attackSync, DownscaleStabilization: time.Second})
	if err != nil {
		return err
	}
	defer c.Stop()
	a := &arena{lab: l, cluster: c, dir: dir}
	assaults := l.assaults(a, long, seed)
	if err := known(names, assaults); err != nil {
		return err
	}
	defer a.close()
	if err := a.setUp(ctx); err != nil {
		return err
	}
	report := attackReport{Versions: l.versions(), Date: time.Now(), Long: long}
	if err := report.read(l.results, names); err != nil {
		return err
	}
	bad := 0
	for i, s := range assaults {
		if len(names) > 0 && !slices.Contains(names, s.name) || ctx.Err() != nil {
			continue
		}
		slog.Info("attack", "name", s.name, "what", s.what, "lasts", s.lasts)
		s.order = i
		r := a.suffer(ctx, s)
		fmt.Println(r.row())
		if !r.ok() {
			bad++
		}
		report.add(r)
		if ctx.Err() == nil {
			if err := report.write(l.results); err != nil {
				return err
			}
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d attacks cost the victims something", bad)
	}
	return ctx.Err()
}

// known returns an error about the first name that is no assault's.
func known(names []string, all []assault) error {
	var there []string
	for _, s := range all {
		there = append(there, s.name)
	}
	for _, name := range names {
		if !slices.Contains(there, name) {
			return fmt.Errorf("no attack %q: they are %s", name, strings.Join(there, "; "))
		}
	}
	return nil
}

// assaults are all that is tried, or those that last for as long as the defaults.
func (l *lab) assaults(a *arena, long bool, seed uint64) (all []assault) {
	const soon, atDefaults = 3 * time.Second, 40 * time.Second
	for _, x := range attack.All() {
		s := assault{name: x.Name, what: x.What, attacks: []attack.Attack{x}, memory: attackMemory, descriptors: x.Descriptors, lasts: x.For, after: max(soon, x.After)}
		if long {
			s.name, s.memory, s.lasts, s.after, s.defaults = x.Name+" at defaults", installedMemory, attackLong, atDefaults, true
		}
		if !long || slices.Contains([]string{"slowone", "steal", "hostflood"}, x.Name) {
			all = append(all, s)
		}
	}
	if long {
		return all
	}
	for _, s := range a.attackers() {
		s.memory, s.after = attackMemory, soon
		all = append(all, s)
	}
	pool := slices.DeleteFunc(slices.Clone(all), func(s assault) bool { return s.files })
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range attackTogether {
		s := assault{name: fmt.Sprintf("together-%d.%d", seed, i+1), memory: installedMemory, after: soon}
		var names []string
		for _, k := range random.Perm(len(pool))[:3] {
			x := pool[k]
			s.attacks, names = append(s.attacks, x.attacks...), append(names, x.name)
			s.lasts, s.after, s.descriptors = max(s.lasts, x.lasts), max(s.after, x.after), max(s.descriptors, x.descriptors)
			if x.do != nil { // one of them
				s.do = x.do
			}
		}
		s.what = strings.Join(names, ", ")
		all = append(all, s)
	}
	return all
}

// attack runs an assault until the context ends, and returns how many MiB were sent over the wire:
// what goes over the wire in processes of their own, which give way to what they attack, since on a
// real cluster they would have other machines.
func (a *arena) attack(ctx context.Context, s assault, m *subject) (sent float64, err error) {
	t := attack.Target{Ingest: m.ingest, HTTPS: m.https, Victims: a.nodes.running(victimNamespace), Witness: a.nodes.running(fleetNamespace)[0]}
	text, err := json.Marshal(t)
	if err != nil {
		return 0, err
	}
	var all []int
	for _, x := range s.attacks {
		p, err := process.Start(filepath.Join(a.dir, "attacker.log"), "nice", "-n", strconv.Itoa(attackNice), a.lab.self, "attacker", x.Name, string(text))
		if err != nil {
			return 0, err
		}
		defer p.Kill()
		all = append(all, p.PID())
	}
	if s.do != nil {
		err = s.do(ctx, m)
	}
	<-ctx.Done()
	if err != nil {
		return 0, err
	}
	for i, pid := range all {
		usage, err := process.UsageOf(pid)
		if err != nil || float64(usage.Written) < s.attacks[i].Sends {
			return 0, errors.Join(err, fmt.Errorf("attacker %s has sent %d bytes, less than the %.0f that make it one", s.attacks[i].Name, usage.Written, s.attacks[i].Sends))
		}
		sent += float64(usage.Written) / (1 << 20)
		if s.attacks[i].Tells && !strings.Contains(m.said(), t.Witness.Address) {
			return sent, fmt.Errorf("the log of meshpulse says nothing of what %s sent", t.Witness.Address)
		}
	}
	return sent, nil
}

// runAttacker is `lab attacker NAME TARGET`.
func runAttacker(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: lab attacker NAME TARGET")
	}
	var t attack.Target
	if err := json.Unmarshal([]byte(args[1]), &t); err != nil {
		return err
	}
	for _, x := range attack.All() {
		if x.Name == args[0] {
			x.Run(ctx, t)
			return nil
		}
	}
	return fmt.Errorf("no attack %q", args[0])
}
