package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/meshpulse/meshpulse/bench/lab/proc"
)

// When lanes begin. Where a replica of meshpulse is to be killed just before a lane steps, lanes
// step in rounds: each kills one replica, before the lanes which that answers for first, and those
// beside them step once it has its history again.

const (
	// recovered is how long after it was killed a replica is as it was.
	recovered = pairAway + pairRetention + 6*time.Second
	// round is from one kill to the next: what steps beside has been acted on.
	round = recovered + 16*time.Second
	// together is how many lanes of a kind step in a round, at once.
	together = 3
)

// stepping is what rounds have to know of a lane.
type stepping struct {
	// step is when it steps, after its beginning; killed how long before that owner is killed, 0
	// for never.
	step, killed time.Duration
	owner        int
}

// kill is when which replica is killed.
type kill struct {
	at      time.Duration
	replica int
}

// rounds are when lanes begin, and who is killed when.
func rounds(lanes []stepping) (begins []time.Duration, kills []kill) {
	base := time.Duration(0)
	for _, l := range lanes {
		base = max(base, l.step)
	}
	begins = make([]time.Duration, len(lanes))
	members := map[int]int{} // how many lanes of the newest round of an owner there are
	newest := map[int]int{}
	beside := 0
	for i, l := range lanes {
		if l.killed == 0 {
			begins[i] = base + time.Duration(beside/together)*round + recovered - l.step
			beside++
			continue
		}
		if n := members[l.owner]; n == 0 || n == together {
			newest[l.owner], members[l.owner] = len(kills), 0
			kills = append(kills, kill{base + time.Duration(len(kills))*round, l.owner})
		}
		members[l.owner]++
		begins[i] = kills[newest[l.owner]].at + l.killed - l.step
	}
	return begins, kills
}

// begins says when each lane begins after the run, and who is killed meanwhile.
func (r *loop) begins() ([]time.Duration, []kill) {
	p, two := r.source.(*pair)
	if two && slices.ContainsFunc(r.lanes, func(ln *lane) bool { return ln.FirstOwnerKilled.Duration > 0 }) {
		var all []stepping
		for _, ln := range r.lanes {
			all = append(all, stepping{ln.Load[0].For.Duration, ln.FirstOwnerKilled.Duration, p.firstOwner(ln.Namespace)})
		}
		return rounds(all)
	}
	// The starts are spread over the shift, each at random within its own part of it, in random
	// order: phases at random, and no run in which all happen to be early.
	begins := make([]time.Duration, len(r.lanes))
	for i, place := range rand.Perm(len(r.lanes)) {
		part := r.scenario.Shift.Duration / time.Duration(len(r.lanes))
		begins[i] = time.Duration(place) * part
		if part > 0 {
			begins[i] += rand.N(part)
		}
	}
	return begins, nil
}

// killAll kills replicas at their times.
func (r *loop) killAll(ctx context.Context, begin time.Time, kills []kill) error {
	for _, k := range kills {
		if !proc.Sleep(ctx, time.Until(begin.Add(k.at))) {
			return nil
		}
		p, ok := r.source.(*pair)
		if !ok {
			return errors.New("there is one replica alone")
		}
		if err := p.killAndLaunch(ctx, k.replica); err != nil {
			return err
		}
	}
	return nil
}
