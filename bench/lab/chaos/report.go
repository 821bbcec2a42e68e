package chaos

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/bench/lab/scenario"
)

// Seen is what was seen in a run.
type Seen struct {
	Seed     uint64
	Schedule Schedule
	HPASync  time.Duration
	Boot     time.Duration // how long the control plane took to start
	// Done counts the faults that were done, by kind; Failed are those that could not be.
	Done   map[Kind]int
	Failed []string
	// Crashes are the times when meshpulse ended by itself.
	Crashes []Moment
	// FlushesDue are those that the running sidecars' intervals make, FlushesTaken were received.
	FlushesDue, FlushesTaken float64
	// Dropped are meshpulse's counters of what it refused, by name and labels.
	Dropped map[string]float64

	wrongDowns, wrongUps, low []Moment
	raises, unrecovered       []string
	silent, asked             time.Duration
	gaps                      []Gap
	looks, answers            int
	sent, failed              int
	lanes                     []Lane
}

// Judge takes what was seen of the lanes into account, from the end of the warm-up on.
func (s *Seen) Judge(traces []Trace) {
	from := Config{}.withDefaults().WarmUp
	for _, t := range traces {
		s.lanes = append(s.lanes, t.Lane)
		s.wrongDowns = append(s.wrongDowns, t.WrongDowns(from)...)
		s.wrongUps = append(s.wrongUps, t.WrongUps(from)...)
		s.low = append(s.low, t.LowAnswers(from)...)
		silent, asked := t.Silence(from)
		s.silent, s.asked = s.silent+silent, s.asked+asked
		s.gaps = append(s.gaps, t.Gaps(from)...)
		s.looks, s.answers = s.looks+len(t.Looks), s.answers+len(t.Answers)
		s.sent, s.failed = s.sent+t.Sent, s.failed+t.Failed
		if ok, last := t.Recovered(); !ok {
			s.unrecovered = append(s.unrecovered, t.Lane.Namespace+": "+last)
		}
		for _, raise := range t.Raises {
			s.raises = append(s.raises, t.Lane.Namespace+" "+raise)
		}
	}
	for _, moments := range [][]Moment{s.wrongDowns, s.wrongUps, s.low} {
		slices.SortFunc(moments, func(a, b Moment) int { return int(a.At - b.At) })
		for i := range moments {
			moments[i].Faults = Around(s.Schedule.Faults, moments[i].At)
		}
	}
}

// Report is the runs of several seeds and where they come from.
type Report struct {
	// Name is that of its files, less what they end in.
	Name            string
	Runs            []Seen
	Hold, Retention time.Duration
	Budget          int
	Versions        []string
	Date            time.Time
	Command         string
}

// measures are a run's figures. Those with a goal decide whether the run was good.
func (s Seen) measures() []scenario.Measure {
	none := 0.0
	done := 0
	for _, n := range s.Done {
		done += n
	}
	dropped := 0.0
	for name, n := range s.Dropped {
		if strings.Contains(name, "_samples_") {
			dropped += n
		}
	}
	count := func(name string, n int) scenario.Measure {
		return scenario.Measure{Name: name, Value: float64(n), Unit: "count", Better: "lower"}
	}
	zero := func(name string, n int) scenario.Measure {
		m := count(name, n)
		m.Goal = &none
		return m
	}
	faults := scenario.Measure{Name: "faults", Value: float64(done), Unit: "count", Better: "higher"}
	if hundred := 100.0; len(s.Schedule.Faults) >= 100 { // fewer only where fewer were asked for
		faults.Goal = &hundred
	}
	return []scenario.Measure{
		faults,
		count("faults that could not be done", len(s.Failed)),
		zero("wrong scale-downs", len(s.wrongDowns)),
		zero("crashes", len(s.Crashes)),
		zero("raises by a surge's action", len(s.raises)),
		zero("lanes not right again in the end", len(s.unrecovered)),
		count("wrong scale-ups", len(s.wrongUps)),
		count("answers that ask for too few replicas", len(s.low)),
		count("answers", s.answers),
		{Name: "time without an answer", Value: s.silent.Seconds() / s.asked.Seconds(), Unit: "ratio", Better: "lower"},
		s.avoidable(),
		{Name: "flushes lost", Value: max(0, 1-s.FlushesTaken/s.FlushesDue), Unit: "ratio", Better: "lower"},
		{Name: "samples refused by meshpulse", Value: dropped, Unit: "count"},
		count("requests sent", s.sent),
		count("requests failed", s.failed),
		{Name: "length", Value: s.Schedule.Length.Seconds(), Unit: "s"},
	}
}

// avoidable is the time without an answer while somebody could have answered. Of several replicas
// another one can whatever becomes of one, so there is a goal.
func (s Seen) avoidable() scenario.Measure {
	m := scenario.Measure{
		Name:  "the same, the API server and meshpulse up, and not begun deaf",
		Value: avoidable(s.gaps, s.Schedule).Seconds() / s.asked.Seconds(), Unit: "ratio", Better: "lower",
	}
	if threePercent := 0.03; s.Schedule.Replicas > 1 {
		m.Name, m.Goal = "the same, the API server up", &threePercent
	}
	return m
}

// figures are all that is written down: how fast the machine boots is told, and decides nothing.
func (s Seen) figures() []scenario.Measure {
	return append(s.measures(), scenario.BootTime(s.Boot))
}

// Missed are the goals that were missed.
func (r Report) Missed() []string {
	var all []string
	for _, s := range r.Runs {
		for _, m := range s.measures() {
			if m.Goal == nil {
				continue
			}
			if m.Better == "lower" && m.Value > *m.Goal || m.Better == "higher" && m.Value < *m.Goal {
				all = append(all, fmt.Sprintf("seed %d: %s: %s", s.Seed, m.Name, m.Text()))
			}
		}
	}
	return all
}

// Markdown is the report as text.
func (r Report) Markdown() string {
	w := &strings.Builder{}
	fmt.Fprintf(w, "\n# %s\n\n`%s`, %s; %s\n\n", r.Name, r.Command, r.Date.UTC().Format("2006-01-02 15:04 MST"), strings.Join(r.Versions, ", "))
	fmt.Fprintf(w, "meshpulse runs with `--hold %s` and `--retention %s` (default 5m both) and, as its budget, a limit of %d series; its ingest port takes plaintext and mutual TLS, with certificates of %s.\n"+
		"In every other lane all sidecars prove themselves, in the others one half of them. The sidecars are stock Envoys with a flush of 5 s; between them and meshpulse is a proxy of TCP that cuts, stalls and refuses connections, and changes bytes of messages and their\n"+
		"timestamps (a sidecar whose clock is off) in place. Its certificate stands in for the sidecar's. Everything else is done to the real thing:\n"+
		"processes are killed, pods deleted, files replaced, rights taken away. Faults last 1 to 60 s, log-uniform, deaf watches and an authority that is away a minute more,\n"+
		"three at once at most. The Envoys evict stats that were not used for two flushes.\n", r.Hold, r.Retention, r.Budget, CertificateLife)
	if slices.ContainsFunc(r.Runs, func(s Seen) bool { return s.Schedule.Replicas > 1 }) {
		fmt.Fprint(w, "There are two replicas of meshpulse behind fronts that play their Services: the API server's goes by readiness, as the manifests' probe finds it.\n"+
			"Of each bout the faults that strike a replica strike the same one. Each is cut off by connections that are refused or, by turns, by all that is said vanishing.\n")
	}
	for _, s := range r.Runs {
		s.print(w)
	}
	return w.String()
}

func (s Seen) print(w *strings.Builder) {
	fmt.Fprintf(w, "\n## Seed %d\n\nHPA sync %s.\n\n| lane | load | per replica | replicas needed | a surge acts |\n|---|---|---|---|---|\n", s.Seed, s.HPASync)
	for _, l := range s.lanes {
		fmt.Fprintf(w, "| %s | %g rps | %g rps | %d | %s |\n", l.Namespace, l.Load, l.PerReplica, l.Need(), map[bool]string{true: "yes", false: "no"}[l.Action])
	}
	fmt.Fprintf(w, "\n| measure | value | goal |\n|---|---|---|\n")
	for _, m := range s.figures() {
		fmt.Fprintf(w, "| %s | %s | %s |\n", m.Name, m.Text(), scenario.GoalText(m))
	}
	fmt.Fprintf(w, "\nTime without an answer is shared out between the faults under way, else those that had just been; it is of all lanes.\n\n"+
		"| fault | done | seconds in all | of the time without an answer | most of that time it said |\n|---|---|---|---|---|\n")
	blamed := blame(s.gaps, s.Schedule.Faults)
	for _, kind := range s.Schedule.Kinds {
		var sum time.Duration
		for _, f := range s.Schedule.Faults {
			if f.Kind == kind {
				sum += f.For
			}
		}
		b := blamed[kind]
		said := strings.NewReplacer("\n", " ", "|", "/").Replace(b.Err)
		fmt.Fprintf(w, "| %s | %d | %.0f | %.3f | %.200s |\n", kind, s.Done[kind], sum.Seconds(), ratio(b.Silent, s.silent), said)
	}
	s.printMoments(w)
	fmt.Fprintf(w, "\nRefused by meshpulse:\n\n")
	for _, name := range slices.Sorted(maps.Keys(s.Dropped)) {
		if n := s.Dropped[name]; n > 0 {
			fmt.Fprintf(w, "- `%s` %.0f\n", name, n)
		}
	}
}

func ratio(part, whole time.Duration) float64 {
	if whole == 0 {
		return 0
	}
	return part.Seconds() / whole.Seconds()
}

// mostMoments is how many of a kind a report shows.
const mostMoments = 20

func (s Seen) printMoments(w *strings.Builder) {
	for _, list := range []struct {
		title   string
		moments []Moment
	}{
		{"Wrong scale-downs", s.wrongDowns},
		{"Crashes", s.Crashes},
		{"Wrong scale-ups", s.wrongUps},
		{"Answers that ask for too few replicas", s.low},
	} {
		if len(list.moments) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s:\n\n", list.title)
		for _, m := range list.moments[:min(mostMoments, len(list.moments))] {
			var faults []string
			for _, f := range m.Faults {
				faults = append(faults, fmt.Sprintf("%s %.0f-%.0f", f.Kind, f.At.Seconds(), f.End().Seconds()))
			}
			fmt.Fprintf(w, "- %.1fs %s: %s (%s)\n", m.At.Seconds(), m.Lane, strings.ReplaceAll(m.What, "\n", " "), strings.Join(faults, ", "))
		}
	}
	for title, lines := range map[string][]string{"Raises": s.raises, "Not right again": s.unrecovered, "Not done": s.Failed} {
		if len(lines) > 0 {
			fmt.Fprintf(w, "\n%s:\n\n- %s\n", title, strings.Join(lines, "\n- "))
		}
	}
}

// Write leaves the report and its rows in dir, Name.md and Name.json.
func (r Report) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var rows []scenario.Row
	for _, s := range r.Runs {
		for _, m := range s.figures() {
			rows = append(rows, scenario.RowOf(fmt.Sprintf("%s, seed %d: ", r.Name, s.Seed), m))
		}
	}
	if err := scenario.WriteRows(filepath.Join(dir, r.Name+".json"), rows); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, r.Name+".md"), []byte(r.Markdown()), 0o644)
}
