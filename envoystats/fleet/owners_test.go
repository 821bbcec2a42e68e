package fleet_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/envoystats/fleet"
)

// random returns up to eight members in up to three zones, in any states.
func random(r *rand.Rand) []fleet.Member {
	zones := []string{"", "a", "b", "c"}[:1+r.IntN(4)]
	members := make([]fleet.Member, r.IntN(9))
	for i := range members {
		members[i] = fleet.Member{Name: fmt.Sprintf("meshpulse-%d", i), Zone: zones[r.IntN(len(zones))], State: fleet.States()[r.IntN(3)]}
	}
	return members
}

// each calls f with many lists of members and a namespace.
func each(t *testing.T, f func(r *rand.Rand, namespace string, members []fleet.Member)) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 1000 {
		f(r, fmt.Sprintf("namespace-%d", i), random(r))
	}
}

func names(members []fleet.Member) []string {
	var all []string
	for _, m := range members {
		all = append(all, m.Name)
	}
	return all
}

func with(members []fleet.Member, state fleet.State) []fleet.Member {
	return slices.DeleteFunc(slices.Clone(members), func(m fleet.Member) bool { return m.State != state })
}

func TestANamespaceHasTwoOwners(t *testing.T) {
	each(t, func(_ *rand.Rand, namespace string, members []fleet.Member) {
		may := len(members)
		if active := len(with(members, fleet.Active)); active > 0 {
			may = active + len(with(members, fleet.Leaving))
		}
		owners := names(fleet.Owners(namespace, members))
		if len(owners) != min(2, may) {
			t.Fatalf("%v of %v own %s", owners, members, namespace)
		}
		if len(owners) == 2 && owners[0] == owners[1] {
			t.Fatalf("%s has one owner twice: %v", namespace, owners)
		}
	})
}

func TestWhoJoinsOwnsNothingBesideWhoIsActive(t *testing.T) {
	each(t, func(_ *rand.Rand, namespace string, members []fleet.Member) {
		if len(with(members, fleet.Active)) == 0 {
			return
		}
		if joining := with(fleet.Owners(namespace, members), fleet.Joining); len(joining) > 0 {
			t.Fatalf("%v own %s beside %v", joining, namespace, members)
		}
	})
}

func TestOwnersDoNotDependOnTheOrderOfTheList(t *testing.T) {
	each(t, func(r *rand.Rand, namespace string, members []fleet.Member) {
		shuffled := slices.Clone(members)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if diff := cmp.Diff(fleet.Owners(namespace, members), fleet.Owners(namespace, shuffled)); diff != "" {
			t.Fatalf("%v: %s", members, diff)
		}
		if diff := cmp.Diff(len(fleet.Keepers(namespace, members)), len(fleet.Keepers(namespace, shuffled))); diff != "" {
			t.Fatalf("%v: %s", members, diff)
		}
	})
}

func TestTheSecondOwnerIsFromAnotherZoneWhereThereIsOne(t *testing.T) {
	each(t, func(_ *rand.Rand, namespace string, members []fleet.Member) {
		for i := range members {
			members[i].State = fleet.Active
		}
		owners := fleet.Owners(namespace, members)
		other := len(members) > 0 && slices.ContainsFunc(members, func(m fleet.Member) bool { return m.Zone != owners[0].Zone })
		if other && owners[0].Zone == owners[1].Zone {
			t.Fatalf("%v own %s: both from zone %s of %v", owners, namespace, owners[0].Zone, members)
		}
	})
}

// A replica that comes takes over what it owns, and one that goes leaves what it owned: nothing
// else moves, but a second owner that has to be of another zone than the first.
func TestNothingMovesThatNeedNot(t *testing.T) {
	each(t, func(_ *rand.Rand, namespace string, members []fleet.Member) {
		if len(members) == 0 {
			return
		}
		for i := range members {
			members[i].State, members[i].Zone = fleet.Active, ""
		}
		before, after := fleet.Owners(namespace, members[1:]), fleet.Owners(namespace, members)
		for _, m := range after {
			if m != members[0] && !slices.Contains(before, m) {
				t.Fatalf("%s comes, and %s owns %s, which it did not", members[0].Name, m.Name, namespace)
			}
		}
		if !slices.Contains(after, members[0]) && !slices.Equal(before, after) {
			t.Fatalf("%s comes and does not own %s, and its owners go from %v to %v", members[0].Name, namespace, before, after)
		}
	})
}

func TestOneMoreReplicaTakesItsShare(t *testing.T) {
	var members []fleet.Member
	for i := range 17 {
		members = append(members, fleet.Member{Name: fmt.Sprintf("meshpulse-%d", i), State: fleet.Active})
	}
	const namespaces = 5_000
	moved, first := 0, 0
	for i := range namespaces {
		owners := fleet.Owners(fmt.Sprintf("namespace-%d", i), members)
		if slices.Contains(owners, members[16]) {
			moved++
		}
		if owners[0] == members[16] {
			first++
		}
	}
	if share := float64(moved) / (2 * namespaces); share < 0.05 || share > 0.07 { // 1/17 is 0.059
		t.Errorf("the 17th of 17 replicas keeps %.3f of all copies", share)
	}
	if share := float64(first) / namespaces; share < 0.05 || share > 0.07 {
		t.Errorf("the 17th of 17 replicas is asked first for %.3f of the namespaces", share)
	}
}

// Whoever may become an owner has been written to before: each that joins is active one day, in any
// order, and each that leaves ends.
func TestWhoKeepsIsWhoMayOwn(t *testing.T) {
	each(t, func(r *rand.Rand, namespace string, members []fleet.Member) {
		keepers := names(fleet.Keepers(namespace, members))
		var later []fleet.Member
		for _, m := range members {
			switch {
			case m.State == fleet.Joining && r.IntN(2) == 0:
				m.State = fleet.Active
			case m.State == fleet.Leaving && r.IntN(2) == 0:
				continue
			}
			later = append(later, m)
		}
		for _, list := range [][]fleet.Member{members, later} {
			for _, m := range fleet.Owners(namespace, list) {
				if !slices.Contains(keepers, m.Name) {
					t.Fatalf("%s owns %s once %v are %v, and was not written to", m.Name, namespace, members, list)
				}
			}
		}
	})
}

func TestActiveReplicasAloneKeepWhatTheyOwn(t *testing.T) {
	each(t, func(_ *rand.Rand, namespace string, members []fleet.Member) {
		for i := range members {
			members[i].State = fleet.Active
		}
		keepers, owners := names(fleet.Keepers(namespace, members)), names(fleet.Owners(namespace, members))
		slices.Sort(owners)
		slices.Sort(keepers)
		if !slices.Equal(keepers, owners) {
			t.Fatalf("%v keep %s, and %v own it", keepers, namespace, owners)
		}
	})
}

// The score is part of what replicas of different versions have to agree on.
func TestOwnersAreTheSameInEveryVersion(t *testing.T) {
	var members []fleet.Member
	for i := range 4 {
		members = append(members, fleet.Member{Name: fmt.Sprintf("meshpulse-%d", i), State: fleet.Active})
	}
	got := map[string][]string{}
	for _, namespace := range []string{"default", "shop", "payments"} {
		got[namespace] = names(fleet.Owners(namespace, members))
	}
	want := map[string][]string{
		"default":  {"meshpulse-2", "meshpulse-1"},
		"shop":     {"meshpulse-1", "meshpulse-2"},
		"payments": {"meshpulse-2", "meshpulse-3"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
