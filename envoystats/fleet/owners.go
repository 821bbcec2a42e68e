package fleet

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// State says what a replica is good for.
type State uint8

const (
	// Joining is a replica that does not have enough history yet to be asked.
	Joining State = iota
	// Active is one that is asked and written to.
	Active
	// Leaving is one that is about to end; until then it owns as before.
	Leaving
)

// String is the state's name, as metrics have it.
func (s State) String() string { return [...]string{"joining", "active", "leaving"}[s] }

// States are all of them.
func States() []State { return []State{Joining, Active, Leaving} }

// Member is a replica.
type Member struct {
	// Name identifies the replica, and stays through restarts: what it owns follows from it.
	Name string
	// Address is where the others reach it, host:port.
	Address string
	// Zone is the failure domain that it runs in, "" where that is not known.
	Zone string
	// State is as far as it has come.
	State State
}

// Owners returns who answers for a namespace, the one that is asked first in front: two replicas,
// or one where there is no other. Those that are joining do where nobody is active: after all have
// begun at once there is no history to wait for.
func Owners(namespace string, members []Member) []Member {
	return pick(namespace, owning(members))
}

// owning are the members that may own.
func owning(members []Member) []Member {
	if !slices.ContainsFunc(members, isActive) {
		return members
	}
	return slices.DeleteFunc(slices.Clone(members), func(m Member) bool { return m.State == Joining })
}

func isActive(m Member) bool { return m.State == Active }

// Keepers returns who has to get what a namespace's pods send, in no order: the owners, and
// whoever becomes one when those that join are active, each by itself or all, and those that leave
// have ended.
//
// That is whoever would be picked beside the active ones alone. The more there are to pick from the
// fewer of them are picked, so nobody else is from any larger set (TestWhoKeepsIsWhoMayOwn).
func Keepers(namespace string, members []Member) []Member {
	active := slices.DeleteFunc(slices.Clone(members), func(m Member) bool { return !isActive(m) })
	var keepers []Member
	for _, m := range members {
		candidates := active
		if !isActive(m) {
			candidates = append(slices.Clip(active), m)
		}
		if slices.Contains(pick(namespace, candidates), m) {
			keepers = append(keepers, m)
		}
	}
	return keepers
}

// pick returns the members with the highest scores, the highest first: the best of all, and of the
// others the best from another zone, or the best where they are all from one.
func pick(namespace string, members []Member) []Member {
	ranked := make([]scored, len(members))
	for i, m := range members {
		ranked[i] = scored{m, score(namespace, m.Name)}
	}
	slices.SortFunc(ranked, func(a, b scored) int { return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.Name, b.Name)) })
	switch len(ranked) {
	case 0:
		return nil
	case 1:
		return []Member{ranked[0].Member}
	}
	second := slices.IndexFunc(ranked, func(m scored) bool { return m.Zone != ranked[0].Zone })
	return []Member{ranked[0].Member, ranked[max(second, 1)].Member}
}

// scored is a member with its score for a namespace.
type scored struct {
	Member
	score uint64
}

// score is the same in every process and every version: who owns what may not depend on who is
// asked.
func score(namespace, name string) uint64 {
	sum := sha256.Sum256([]byte(namespace + "\x00" + name))
	return binary.BigEndian.Uint64(sum[:])
}
