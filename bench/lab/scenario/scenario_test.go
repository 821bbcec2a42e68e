package scenario

import (
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/load"
)

const valid = `
about: a story
lanes:
- perReplica: 10
  hpa: {file: hpa.yaml}
load:
- {for: 10s, rps: 5}
checks:
- {say: one, from: 1s, desired: [1, 1]}
`

func TestParseFillsInDefaults(t *testing.T) {
	s, err := Parse([]byte(valid))
	if err != nil {
		t.Fatal(err)
	}
	lane := s.Lanes[0]
	got := []any{s.HPASync[0].Duration, s.Flush.Duration, s.Repeat, lane.Namespace, lane.Replicas, lane.Load.Duration()}
	want := []any{15 * time.Second, 5 * time.Second, 1, "test", int32(1), 10 * time.Second}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseNamesWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct{ replace, with, want string }{
		"an unknown key":             {"about:", "abuot:", "abuot"},
		"no lane":                    {"lanes:\n- perReplica: 10\n  hpa: {file: hpa.yaml}", "lanes: []", "lanes: none"},
		"no rate per replica":        {"perReplica: 10", "perReplica: 0", "perReplica"},
		"no HPA":                     {"{file: hpa.yaml}", "{}", "either file or manifest"},
		"no load":                    {"- {for: 10s, rps: 5}", "", "load: no segment"},
		"a check of nothing":         {", desired: [1, 1]", "", "exactly one"},
		"bounds the wrong way round": {"[1, 1]", "[2, 1]", "[least, most]"},
		"an unknown action":          {"checks:", "actions: [{at: 1s, do: dance}]\nchecks:", "dance"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(strings.Replace(valid, test.replace, test.with, 1)))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want it to say %q", err, test.want)
			}
		})
	}
}

func TestEveryScenarioOfTheProjectIsReadWithItsHPA(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	var files []string
	for _, pattern := range []string{"*.yaml", "ci/*.yaml"} {
		some, err := filepath.Glob(filepath.Join("..", "scenarios", pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, some...)
	}
	if len(files) == 0 {
		t.Fatal("no scenario found")
	}
	for _, file := range files {
		s, err := Load(file)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, lane := range s.Expanded() {
			hpa, err := lane.Object(root)
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			if hpa.Namespace != lane.Namespace || hpa.Spec.ScaleTargetRef.Name != "podinfo" {
				t.Errorf("%s: the HPA is %s's, of %s", file, hpa.Namespace, hpa.Spec.ScaleTargetRef.Name)
			}
			for key, query := range hpa.Annotations {
				if strings.Contains(query, `namespace="`) && !strings.Contains(query, `namespace="`+lane.Namespace+`"`) {
					t.Errorf("%s: annotation %s does not ask for namespace %s: %s", file, key, lane.Namespace, query)
				}
			}
		}
	}
}

// trace steps from 5 to 28 rps at 10 s (ideal 1, then 3) and back to 5 at 30 s, seen once a second.
func trace(desired, ready func(second int) int) Trace {
	t := Trace{PerReplica: 10, Min: 1, Max: 5, Load: load.Profile{
		{For: metav1.Duration{Duration: 10 * time.Second}, RPS: 5},
		{For: metav1.Duration{Duration: 20 * time.Second}, RPS: 28},
		{For: metav1.Duration{Duration: 10 * time.Second}, RPS: 5},
	}}
	for i := range 41 {
		at := time.Duration(i) * time.Second
		t.Samples = append(t.Samples, Sample{At: at, RPS: t.Load.Rate(at), Desired: desired(i), Ready: ready(i)})
	}
	return t
}

// after is before until a second, then later.
func after(second, before, later int) func(int) int {
	return func(i int) int {
		if i < second {
			return before
		}
		return later
	}
}

func TestReactionsAreTimedFromTheStep(t *testing.T) {
	for name, test := range map[string]struct {
		desired, ready func(int) int
		want           []Reaction
	}{
		"decided and ready":                {after(14, 1, 3), after(16, 1, 3), []Reaction{{At: 10 * time.Second, Decision: 4 * time.Second, Enough: 6 * time.Second, Raise: notSeen, All: notSeen}}},
		"decided, never enough":            {after(14, 1, 2), after(16, 1, 2), []Reaction{{At: 10 * time.Second, Decision: 4 * time.Second, Enough: notSeen, Raise: notSeen, All: notSeen}}},
		"never decided":                    {after(0, 1, 1), after(0, 1, 1), []Reaction{{At: 10 * time.Second, Decision: notSeen, Enough: notSeen, Raise: notSeen, All: notSeen}}},
		"decided after the step has ended": {after(31, 1, 3), after(32, 1, 3), []Reaction{{At: 10 * time.Second, Decision: notSeen, Enough: notSeen, Raise: notSeen, All: notSeen}}},
		"there were enough all the time":   {after(0, 3, 3), after(0, 3, 3), nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, trace(test.desired, test.ready).Reactions()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// askedTrace is trace with the replicas that were asked of the target, from one on.
func askedTrace(changes ...Asked) Trace {
	t := trace(after(0, 1, 1), after(0, 1, 1))
	t.Asked = append([]Asked{{At: -time.Second, Replicas: 1}}, changes...)
	return t
}

func TestRaisesAreTimedByWhatIsAskedOfTheTarget(t *testing.T) {
	s := time.Second
	for name, test := range map[string]struct {
		trace      Trace
		raise, all time.Duration
		back       Return
	}{
		"at once":          {askedTrace(Asked{12 * s, 3}, Asked{35 * s, 1}), 2 * s, 2 * s, Return{3, 5 * s}},
		"in two steps":     {askedTrace(Asked{12 * s, 2}, Asked{17 * s, 4}, Asked{36 * s, 1}), 2 * s, 7 * s, Return{4, 6 * s}},
		"never all":        {askedTrace(Asked{12 * s, 2}, Asked{31 * s, 1}), 2 * s, notSeen, Return{2, s}},
		"never":            {askedTrace(), notSeen, notSeen, Return{1, 0}},
		"before the step":  {askedTrace(Asked{5 * s, 3}), notSeen, notSeen, Return{3, notSeen}},
		"too late":         {askedTrace(Asked{31 * s, 3}, Asked{36 * s, 1}), notSeen, notSeen, Return{3, 6 * s}},
		"back, and again":  {askedTrace(Asked{12 * s, 3}, Asked{31 * s, 1}, Asked{32 * s, 2}), 2 * s, 2 * s, Return{3, notSeen}},
		"back in the wave": {askedTrace(Asked{12 * s, 3}, Asked{20 * s, 1}), 2 * s, 2 * s, Return{3, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			r := test.trace.Reactions()
			if len(r) != 1 || r[0].Raise != test.raise || r[0].All != test.all {
				t.Errorf("reactions %+v, want raise %s, all %s", r, test.raise, test.all)
			}
			if diff := cmp.Diff([]Return{test.back}, test.trace.Returns()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestHighCoverageLeavesTheRestOut(t *testing.T) {
	// 20 s need 3 replicas and have 1.
	coverage, _ := trace(after(30, 1, 3), after(30, 1, 3)).HighCoverage()
	if want := 1.0 / 3; math.Abs(coverage-want) > 1e-9 {
		t.Errorf("got %v, want %v", coverage, want)
	}
}

func TestQuantile90IsNotExceededByNineTenths(t *testing.T) {
	for want, values := range map[float64][]float64{
		9: {10, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 7: {7}, 2: {1, 2},
	} {
		if got := quantile90(values); got != want {
			t.Errorf("of %v: got %v, want %v", values, got, want)
		}
	}
}

func TestTheTimeAfterTheLoadIsNotMeasured(t *testing.T) {
	run := trace(after(0, 1, 1), after(0, 1, 1))
	coverage, waste := run.Coverage()
	for i := 41; i < 80; i++ {
		run.Samples = append(run.Samples, Sample{At: time.Duration(i) * time.Second, Ready: 5})
	}
	if c, w := run.Coverage(); c != coverage || w != waste {
		t.Errorf("coverage %v and waste %v with a lane that waits, %v and %v without", c, w, coverage, waste)
	}
}

func TestActingAsksForIt(t *testing.T) {
	s, err := Parse([]byte(valid))
	if err != nil {
		t.Fatal(err)
	}
	x := s.Acting()
	if diff := cmp.Diff([]string{"surge-action"}, x.Components); diff != "" || x.Lanes[0].HPA.Annotations["meshpulse.io/surge-action"] != "scale" {
		t.Errorf("%s, annotations %v", diff, x.Lanes[0].HPA.Annotations)
	}
	if got := x.Lanes[0].Load[0].For.Duration; got != actingHistory {
		t.Errorf("history before the first step: got %s, want %s", got, actingHistory)
	}
	if want := s.MeasureFrom.Duration + actingHistory - s.Lanes[0].Load[0].For.Duration; x.MeasureFrom.Duration != want {
		t.Errorf("measured from %s, want %s", x.MeasureFrom.Duration, want)
	}
	if len(s.Components) > 0 || s.Lanes[0].HPA.Annotations != nil || s.Lanes[0].Load[0].For.Duration == actingHistory {
		t.Error("the scenario itself has changed")
	}
}

func TestCoverageAndWasteAreSharesOfTheIdeal(t *testing.T) {
	// 20 of 40 s need 3 replicas and have 1; then 10 s need 1 and have 3.
	coverage, waste := trace(after(30, 1, 3), after(30, 1, 3)).Coverage()
	if want := (10 + 20.0/3 + 10) / 40; math.Abs(coverage-want) > 1e-9 {
		t.Errorf("coverage: got %v, want %v", coverage, want)
	}
	if want := 2 * 10.0 / 40; math.Abs(waste-want) > 1e-9 {
		t.Errorf("waste: got %v, want %v", waste, want)
	}
}

func TestAScaleDownIsWrongWhileTheLoadNeedsMore(t *testing.T) {
	for name, test := range map[string]struct {
		desired func(int) int
		want    int
	}{
		"down under load":           {after(20, 3, 2), 1},
		"down after the load":       {after(31, 3, 1), 0},
		"down to what is needed":    {after(20, 5, 3), 0},
		"never enough, never fewer": {after(0, 1, 1), 0},
	} {
		tr := trace(test.desired, test.desired)
		if got := tr.WrongScaleDowns(); got != test.want {
			t.Errorf("%s: got %d, want %d", name, got, test.want)
		}
		tr.From = 25 * time.Second
		if got := tr.WrongScaleDowns(); got != 0 {
			t.Errorf("%s: %d before anything is measured", name, got)
		}
	}
}

func TestJudgeHoldsEachCheckAgainstWhatWasSeen(t *testing.T) {
	four, two := 4.0, 2.0
	tr := trace(after(14, 1, 3), after(14, 1, 3))
	tr.Namespace, tr.Events = "test", []string{"BadAnnotation: no such key", "NoQuery: one", "NoQuery: two"}
	tr.Conditions = []string{"AbleToScale=True", "ScalingActive=True"}
	second := func(n int) metav1.Duration { return metav1.Duration{Duration: time.Duration(n) * time.Second} }
	run := Run{Traces: []Trace{tr}, HPASync: time.Second, Scenario: Scenario{Repeat: 1, Checks: []Check{
		{Say: "holds", From: second(20), To: second(30), Desired: []int{3, 3}},
		{Say: "too early", From: second(10), To: second(30), Desired: []int{3, 3}},
		{Say: "no sample there", From: second(100), Ready: []int{1, 1}},
		{Say: "event", Event: "BadAnnotation"},
		{Say: "no event", Event: "Annotation"},
		{Say: "two events", Event: "NoQuery", Times: 2},
		{Say: "one event too many", Event: "NoQuery", Times: 1},
		{Say: "condition", Condition: "ScalingActive=True"},
		{Say: "no condition", Condition: "ScalingActive=False"},
		{Say: "fast enough", Measure: FirstDecision, AtMost: &four},
		{Say: "too slow", Measure: FirstDecision, AtMost: &two},
		{Say: "no such measure", Measure: "height", AtMost: &two},
		{Say: "no such lane", Lane: "other", Desired: []int{1, 1}},
		{Say: "another sync", HPASync: &metav1.Duration{Duration: time.Minute}, Measure: FirstDecision, AtMost: &two},
	}}}
	run.Judge()
	got := map[string]bool{}
	for _, v := range run.Verdicts {
		got[strings.TrimPrefix(v.Say, "test: ")] = v.OK
	}
	want := map[string]bool{
		"holds": true, "too early": false, "no sample there": false, "event": true, "no event": false, "two events": true, "one event too many": false,
		"condition": true, "no condition": false,
		"fast enough": true, "too slow": false, "no such measure": false, "no such lane": false,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if run.OK() {
		t.Error("a run with failed checks is not OK")
	}
}
