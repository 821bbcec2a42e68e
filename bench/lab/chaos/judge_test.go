package chaos

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// lane needs 4 replicas for 31.7 requests a second.
var lane = Lane{Namespace: "promql", Load: 31.7, PerReplica: 10, Target: 10}

// looks are one a second, as desired replicas and the target's. The HPA finds what the look before
// had.
func looks(pairs ...[2]int) (all []Look) {
	for i, p := range pairs {
		all = append(all, Look{At: time.Duration(i) * time.Second, Desired: p[0], Found: pairs[max(0, i-1)][1], Spec: p[1]})
	}
	return all
}

// atOnce are looks of which the last has both what somebody has made by hand and what the HPA made
// of it.
func atOnce(byHand int, pairs ...[2]int) []Look {
	all := looks(pairs...)
	all[len(all)-1].Found = byHand
	return all
}

func times(moments []Moment) (seconds []float64) {
	for _, m := range moments {
		seconds = append(seconds, m.At.Seconds())
	}
	return seconds
}

func TestWrongDownsAndUps(t *testing.T) {
	for name, tc := range map[string]struct {
		looks     []Look
		from      time.Duration
		down, ups []float64
	}{
		"always right":                            {looks: looks([2]int{4, 4}, [2]int{4, 4})},
		"one too few, and back":                   {looks: looks([2]int{4, 4}, [2]int{3, 3}, [2]int{3, 3}, [2]int{4, 4}), down: []float64{1}},
		"fewer and fewer":                         {looks: looks([2]int{4, 4}, [2]int{3, 3}, [2]int{2, 2}), down: []float64{1, 2}},
		"from too many to what is needed":         {looks: looks([2]int{7, 7}, [2]int{4, 4})},
		"too few before it counts, and still":     {looks: looks([2]int{3, 3}, [2]int{3, 3}, [2]int{3, 3}), from: time.Second, down: []float64{1}},
		"too many":                                {looks: looks([2]int{4, 4}, [2]int{5, 5}, [2]int{5, 5}), ups: []float64{1}},
		"as many as somebody has made by hand":    {looks: looks([2]int{4, 4}, [2]int{4, 6}, [2]int{6, 6}, [2]int{4, 4})},
		"by hand, and the HPA has looked at once": {looks: atOnce(6, [2]int{4, 4}, [2]int{6, 6})},
		"more than by hand, at once":              {looks: atOnce(6, [2]int{4, 4}, [2]int{7, 7}), ups: []float64{1}},
		"more than somebody has made by hand":     {looks: looks([2]int{4, 4}, [2]int{4, 6}, [2]int{7, 7}), ups: []float64{2}},
		"up to what is needed after too few":      {looks: looks([2]int{2, 2}, [2]int{2, 2}, [2]int{4, 4}), from: 2 * time.Second},
		"no status at first is no fall":           {looks: looks([2]int{0, 4}, [2]int{4, 4})},
		"what happens before it counts does not":  {looks: looks([2]int{4, 4}, [2]int{2, 2}, [2]int{9, 9}, [2]int{4, 4}, [2]int{4, 4}), from: 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			trace := Trace{Lane: lane, Looks: tc.looks}
			if diff := cmp.Diff(tc.down, times(trace.WrongDowns(tc.from))); diff != "" {
				t.Errorf("wrong scale-downs: %s", diff)
			}
			if diff := cmp.Diff(tc.ups, times(trace.WrongUps(tc.from))); diff != "" {
				t.Errorf("wrong scale-ups: %s", diff)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	trace := Trace{Lane: lane, Answers: []Answer{
		{At: 1 * time.Second, Value: 20}, // before it counts
		{At: 2 * time.Second, Value: 30.1},
		{At: 3 * time.Second, Value: 30},
		{At: 4 * time.Second, Value: math.NaN(), Err: "down"},
		{At: 6 * time.Second, Value: 20, Held: keeps + " the replicas"}, // replicas that are too few already
		{At: 7 * time.Second, Value: 31.7},
	}}
	if diff := cmp.Diff([]float64{3}, times(trace.LowAnswers(2*time.Second))); diff != "" {
		t.Errorf("low answers: %s", diff)
	}
	if silent, asked := trace.Silence(2 * time.Second); silent != 2*time.Second || asked != 5*time.Second {
		t.Errorf("silent for %s of %s, want 2s of 5s", silent, asked)
	}
}

func TestTimeWithoutAnAnswerIsPutDownToTheFaultsUnderWay(t *testing.T) {
	none := math.NaN()
	trace := Trace{Lane: lane, Answers: []Answer{
		{At: 5 * time.Second, Value: none, Err: "before it counts"},
		{At: 10 * time.Second, Value: none, Err: "down for 1s"}, // under way: the kill alone
		{At: 11 * time.Second, Value: none, Err: "down for 2s"},
		{At: 12 * time.Second, Value: none, Err: "cut"}, // the kill and the cut
		{At: 14 * time.Second, Value: 30},
		{At: 40 * time.Second, Value: none, Err: "late"}, // both have just been
		{At: 44 * time.Second, Value: 30},
	}}
	faults := []Fault{
		{Kind: KillMeshpulse, At: 10 * time.Second, For: 5 * time.Second},
		{Kind: CutStreams, At: 12 * time.Second, For: time.Second},
		{Kind: AddPods, At: 300 * time.Second, For: time.Second},
	}
	want := map[Kind]Blame{
		KillMeshpulse: {Silent: 5 * time.Second, Err: "down for #s"},
		CutStreams:    {Silent: 3 * time.Second, Err: "late"},
	}
	if diff := cmp.Diff(want, blame(trace.Gaps(10*time.Second), faults)); diff != "" {
		t.Error(diff)
	}
}

func TestAvoidableSilence(t *testing.T) {
	faults := []Fault{
		{Kind: KillMeshpulse, At: 10 * time.Second, For: 5 * time.Second},
		{Kind: KillAPIServer, At: 40 * time.Second, For: 5 * time.Second},
		{Kind: DeafWatches, At: 100 * time.Second, For: 60 * time.Second},
		{Kind: KillMeshpulse, At: 110 * time.Second, For: time.Second},
	}
	for at, want := range map[time.Duration]bool{9: true, 10: false, 19: false, 21: true, 45: false, 51: true, 105: true, 111: false, 140: false, 164: false, 166: true} {
		gap := []Gap{{At: at * time.Second, For: time.Second}}
		if got := avoidable(gap, Schedule{Faults: faults, Replicas: 1}) > 0; got != want {
			t.Errorf("no answer at %ds: avoidable is %v, want %v", at, got, want)
		}
		anothers := at != 45 // all but what the API server's absence is the reason of
		if got := avoidable(gap, Schedule{Faults: faults, Replicas: 2}) > 0; got != anothers {
			t.Errorf("no answer of two at %ds: avoidable is %v, want %v", at, got, anothers)
		}
	}
}

func TestRecovered(t *testing.T) {
	inFlight := Lane{Load: 42, PerReplica: 18, Target: 1.8} // 4.2 in flight, 3 replicas
	for name, tc := range map[string]struct {
		lane Lane
		last Answer
		want bool
	}{
		"right":                    {lane, Answer{Value: 32.5}, true},
		"too much":                 {lane, Answer{Value: 34}, false},
		"too little":               {lane, Answer{Value: 30}, false},
		"held":                     {lane, Answer{Value: 31.7, Held: "why"}, false},
		"no answer":                {lane, Answer{Value: math.NaN(), Err: "why"}, false},
		"in flight, right":         {inFlight, Answer{Value: 4.6}, true},
		"in flight, too much":      {inFlight, Answer{Value: 5.5}, false},
		"in flight, without value": {inFlight, Answer{Value: math.NaN()}, false},
	} {
		if ok, seen := (Trace{Lane: tc.lane, Answers: []Answer{{Value: 1}, tc.last}}).Recovered(); ok != tc.want {
			t.Errorf("%s: got %v (%s)", name, ok, seen)
		}
	}
}

func TestAReportTellsWhatWasMissed(t *testing.T) {
	s, err := New(Config{Seed: 1, Lanes: 1})
	if err != nil {
		t.Fatal(err)
	}
	run := func(desired int) Seen {
		seen := Seen{Seed: 1, Schedule: s, Done: map[Kind]int{}, Dropped: map[string]float64{}, FlushesDue: 100, FlushesTaken: 90, Boot: 12 * time.Second}
		for _, f := range s.Faults {
			seen.Done[f.Kind]++
		}
		begin := Config{}.withDefaults().WarmUp
		var trace Trace
		trace.Lane = lane
		for i, d := range []int{4, desired} {
			at := begin + time.Duration(i)*time.Minute
			trace.Looks = append(trace.Looks, Look{At: at, Desired: d, Spec: d})
			trace.Answers = append(trace.Answers, Answer{At: at, Value: 31.7})
		}
		seen.Judge([]Trace{trace})
		return seen
	}
	if missed := (Report{Runs: []Seen{run(4)}}).Missed(); len(missed) > 0 {
		t.Errorf("a good run missed %v", missed)
	}
	bad := Report{Runs: []Seen{run(4), run(3)}}
	if diff := cmp.Diff([]string{"seed 1: wrong scale-downs: 1"}, bad.Missed()); diff != "" {
		t.Error(diff)
	}
	text := bad.Markdown()
	for _, part := range []string{"| flushes lost | 0.100 |", "3 replicas desired, 4 before, 4 needed", "kill-apiserver", "| control plane booted | 12.0 s | at most 10 |"} {
		if !strings.Contains(text, part) {
			t.Errorf("the report lacks %q", part)
		}
	}
}
