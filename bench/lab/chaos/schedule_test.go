package chaos

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func schedule(t *testing.T, seed uint64) Schedule {
	t.Helper()
	s, err := New(Config{Seed: seed, Lanes: 4})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTheSeedDecidesTheSchedule(t *testing.T) {
	if diff := cmp.Diff(schedule(t, 7), schedule(t, 7)); diff != "" {
		t.Errorf("one seed, two schedules: %s", diff)
	}
	if cmp.Equal(schedule(t, 7), schedule(t, 8)) {
		t.Error("two seeds, one schedule")
	}
}

func TestEveryScheduleKeepsTheRules(t *testing.T) {
	for seed := range uint64(200) {
		s := schedule(t, seed)
		if len(s.Faults) < 100 {
			t.Fatalf("seed %d: %d faults, want 100 at least", seed, len(s.Faults))
		}
		if s.Length > 40*time.Minute {
			t.Errorf("seed %d: takes %s", seed, s.Length)
		}
		counts := map[Kind]int{}
		for i, f := range s.Faults {
			counts[f.Kind]++
			shortest, longest := Shortest, Longest
			if f.Kind == DeafWatches || f.Kind == AuthorityAway {
				shortest, longest = shortest+Deaf, longest+Deaf
			}
			if f.For < shortest || f.For > longest {
				t.Errorf("seed %d: %s lasts too short or too long", seed, f)
			}
			if (f.Lane >= 0) != slices.Contains(ofALane, f.Kind) || f.Lane >= 4 {
				t.Errorf("seed %d: %s strikes lane %d", seed, f, f.Lane)
			}
			if f.End() > s.Length {
				t.Errorf("seed %d: %s outlasts the run of %s", seed, f, s.Length)
			}
			atOnce := 0
			for j, o := range s.Faults {
				if o.At <= f.At && f.At < o.End() {
					atOnce++
				}
				if j != i && o.Kind == f.Kind && o.At < f.End() && f.At < o.End() {
					t.Errorf("seed %d: %s and %s at once", seed, f, o)
				}
				if f.Kind == KillMeshpulse && o.Kind == ReplaceCertificates && o.At < f.End()+recovery && f.At < o.End() {
					t.Errorf("seed %d: meshpulse starts while its files are replaced: %s, %s", seed, f, o)
				}
				if j != i && (f.Kind == KillAPIServer || f.Kind == DeafWatches) && o.Kind == DeafWatches && o.End() <= f.At && f.At < o.End()+recovery {
					t.Errorf("seed %d: rights are not given back yet: %s, %s", seed, o, f)
				}
				if f.Kind == KillAPIServer && slices.Contains(throughTheAPI, o.Kind) && o.At < f.End() && f.At < o.End() {
					t.Errorf("seed %d: %s while the API server is down: %s", seed, o, f)
				}
			}
			if atOnce > AtOnce {
				t.Errorf("seed %d: %d faults at once at %s", seed, atOnce, f.At)
			}
		}
		for _, kind := range Kinds {
			if counts[kind] != 7 {
				t.Errorf("seed %d: %d of %s, want 7", seed, counts[kind], kind)
			}
		}
	}
}

// Of several replicas a bout strikes one, and the next bout the next: one that was killed has its
// history again before the other is struck.
func TestABoutStrikesOneReplica(t *testing.T) {
	for seed := range uint64(50) {
		s, err := New(Config{Seed: seed, Lanes: 4, Replicas: 2, Faults: 46})
		if err != nil {
			t.Fatal(err)
		}
		counts, struck, until := map[Kind]map[int]int{}, -1, time.Duration(0)
		for _, f := range s.Faults {
			if (f.Replica >= 0) != slices.Contains(ofAReplica, f.Kind) {
				t.Fatalf("seed %d: %s strikes replica %d", seed, f, f.Replica)
			}
			if f.Replica < 0 {
				continue
			}
			if f.Replica != struck && struck >= 0 && f.At < until+2*time.Minute {
				t.Errorf("seed %d: %s, and the other one was struck until %s", seed, f, until)
			}
			struck, until = f.Replica, max(until, f.End())
			if counts[f.Kind] == nil {
				counts[f.Kind] = map[int]int{}
			}
			counts[f.Kind][f.Replica]++
		}
		for _, kind := range ofAReplica {
			if diff := cmp.Diff(map[int]int{0: 1, 1: 1}, counts[kind]); diff != "" {
				t.Errorf("seed %d: %s: %s", seed, kind, diff)
			}
		}
		if s.Length > 23*time.Minute {
			t.Errorf("seed %d: takes %s", seed, s.Length)
		}
	}
}

func TestLengthsAreLogUniform(t *testing.T) {
	var lengths []float64
	for seed := range uint64(100) {
		for _, f := range schedule(t, seed).Faults {
			if f.Kind == DeafWatches || f.Kind == AuthorityAway {
				f.For -= Deaf
			}
			lengths = append(lengths, math.Log(f.For.Seconds())/math.Log(60))
		}
	}
	slices.Sort(lengths)
	worst := 0.0 // Kolmogorov and Smirnov's distance from the uniform distribution
	for i, x := range lengths {
		worst = max(worst, math.Abs(x-float64(i)/float64(len(lengths))))
	}
	if limit := 1.95 / math.Sqrt(float64(len(lengths))); worst > limit {
		t.Errorf("the logarithms of %d lengths are %v from uniform, want less than %v", len(lengths), worst, limit)
	}
}

func TestCalmsAreLongEnoughForKnowledgeToBeComplete(t *testing.T) {
	s := schedule(t, 1)
	calms, busyUntil := 0, time.Duration(0)
	for _, f := range s.Faults {
		if f.At-busyUntil >= 75*time.Second {
			calms++
		}
		busyUntil = max(busyUntil, f.End())
	}
	if calms != 4 {
		t.Errorf("got %d calms before faults, want 4", calms)
	}
	if s.Length-busyUntil < 225*time.Second {
		t.Errorf("the last fault ends at %s of %s", busyUntil, s.Length)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, c := range map[string]Config{
		"no lane":         {},
		"negative faults": {Lanes: 1, Faults: -1},
		"negative calm":   {Lanes: 1, Calm: -1},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
