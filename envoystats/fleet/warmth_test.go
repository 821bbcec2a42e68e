package fleet_test

import (
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/envoystats/fleet"
)

func TestAReplicaWarmsUpBesideOthersThatAreActive(t *testing.T) {
	const takes = 5 * time.Minute
	began := time.Unix(1000, 0)
	member := func(name string, s fleet.State) fleet.Member { return fleet.Member{Name: name, State: s} }
	own := member("a", fleet.Joining)
	for name, test := range map[string]struct {
		seen  [][]fleet.Member
		after time.Duration
		asked bool
	}{
		"nothing is known of others yet":                {nil, time.Second, false},
		"nor after it has been up for long":             {nil, takes, true},
		"alone":                                         {[][]fleet.Member{{own}}, time.Second, true},
		"not even itself is listed":                     {[][]fleet.Member{{}}, time.Second, true},
		"beside one that is active":                     {[][]fleet.Member{{own, member("b", fleet.Active)}}, time.Second, false},
		"until it has the history":                      {[][]fleet.Member{{own, member("b", fleet.Active)}}, takes, true},
		"all have begun at once":                        {[][]fleet.Member{{own, member("b", fleet.Joining)}}, time.Second, true},
		"and another one is active before":              {[][]fleet.Member{{own, member("b", fleet.Joining)}, {own, member("b", fleet.Active)}}, time.Second, true},
		"the active one is gone while it warms up":      {[][]fleet.Member{{own, member("b", fleet.Active)}, {own}}, time.Second, true},
		"the active one leaves: nobody is left to wait": {[][]fleet.Member{{own, member("b", fleet.Leaving)}}, time.Second, true},
		"it was active before itself, and began anew":   {[][]fleet.Member{{member("a", fleet.Active)}}, time.Second, true},
	} {
		w := fleet.NewWarmth("a", began, takes)
		for _, members := range test.seen {
			w.See(members)
		}
		if err := w.Cold(began.Add(test.after)); (err == nil) != test.asked {
			t.Errorf("%s: %v", name, err)
		}
	}
}
