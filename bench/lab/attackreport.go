package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/bench/lab/scenario"
)

// attackReport is all that was seen of attacks.
type attackReport struct {
	Versions []string
	Date     time.Time
	Long     bool
	Results  []attackResult
}

// name is that of the files, and of the command.
func (r attackReport) name() (file, command string) {
	if r.Long {
		return "attack-long", "make attack LONG=1"
	}
	return "attack", "make attack"
}

func (r attackReport) write(dir string) error {
	file, _ := r.name()
	slices.SortStableFunc(r.Results, func(a, b attackResult) int { return a.Order - b.Order })
	var rows []scenario.Row
	for _, x := range r.Results {
		for _, m := range x.measures() {
			rows = append(rows, scenario.RowOf("attack, "+x.Name+": ", m))
		}
	}
	seen, err := json.MarshalIndent(r.Results, "", " ")
	return errors.Join(
		err,
		os.MkdirAll(dir, 0o755),
		os.WriteFile(filepath.Join(dir, file+"-seen.json"), seen, 0o644),
		scenario.WriteRows(filepath.Join(dir, file+".json"), rows),
		os.WriteFile(filepath.Join(dir, file+".md"), []byte(r.markdown()), 0o644),
	)
}

// read takes what was seen before of those that are not tried anew.
func (r *attackReport) read(dir string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	file, _ := r.name()
	data, err := os.ReadFile(filepath.Join(dir, file+"-seen.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return errors.Join(err, json.Unmarshal(data, &r.Results))
}

// add takes what was seen of one, in place of what was seen of it before.
func (r *attackReport) add(seen attackResult) {
	r.Results = append(slices.DeleteFunc(r.Results, func(x attackResult) bool { return x.Name == seen.Name }), seen)
}

// measures are what is compared from run to run.
func (r attackResult) measures() []scenario.Measure {
	all := []scenario.Measure{}
	add := func(name string, value float64, unit string, goal float64) {
		all = append(all, scenario.Measure{Name: name, Value: value, Unit: unit, Goal: &goal, Better: "lower"})
	}
	add("answers that are wrong", float64(r.Wrong), "count", 0)
	add("answers that are missing", float64(r.Missing), "count", 0)
	add("answers that are held and name no attacker", float64(r.Unnamed), "count", 0)
	add("p99 of answers, of that before", r.During/max(r.Before, 0.1), "ratio", patience)
	add("longest answer of the engine", r.Engine, "s", 4)
	add("victims' streams closed", float64(r.Closed), "count", 0)
	add("exits", map[bool]float64{true: 1}[r.Exited], "count", 0)
	add("memory but pages of files, of GOMEMLIMIT", r.Memory/r.Limit, "ratio", 1.08)
	if r.Peak > 0 {
		add("peak of the container's memory", r.Peak, "MiB", containerMost>>20)
	}
	add("ended after SIGTERM", r.Ended, "s", 5)
	all = append(all,
		scenario.Measure{Name: "answers that are right", Value: float64(r.Right), Unit: "count", Better: "higher"},
		scenario.Measure{Name: "answers that are held and name an attacker", Value: float64(r.Held), Unit: "count", Better: "lower"},
		scenario.Measure{Name: "p99 of answers", Value: r.During, Unit: "ms", Better: "lower"})
	return all
}

const attackHead = "| attack | what | sent, MiB | right | held | held, unnamed | missing | wrong | p99 before, ms | p99, ms | engine, s | replicas | closed | memory, MiB of | container's peak, MiB | ended in, s | |\n" +
	"|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n"

func (r attackResult) row() string {
	return fmt.Sprintf("| %s | %s | %.1f | %d | %d | %d | %d | %d | %.1f | %.1f | %.2f | %d-%d | %d | %.0f of %.0f | %s | %.1f | %s |",
		r.Name, r.What, r.Sent, r.Right, r.Held, r.Unnamed, r.Missing, r.Wrong, r.Before, r.During, r.Engine, r.Fewest, r.Most, r.Closed, r.Memory, r.Limit, r.peak(), r.Ended, r.verdict())
}

// peak is that of the container, for a cell.
func (r attackResult) peak() string {
	if r.Peak == 0 {
		return "not measured"
	}
	return fmt.Sprintf("%.0f", r.Peak)
}

func (r attackResult) verdict() string {
	switch {
	case r.ok():
		return "ok"
	case r.Exited:
		return "it exited"
	case r.Wrong+r.Missing+r.Unnamed > 0 || r.Failure != "":
		return cmp.Or(r.Failure, r.After)
	case r.Closed > 0:
		return "victims' streams were closed"
	case r.slow() || r.Engine > 4:
		return "slow"
	case r.Ended > 5:
		return "ends late"
	}
	return "memory"
}

func (r attackReport) markdown() string {
	var w strings.Builder
	_, command := r.name()
	fmt.Fprintf(&w, "# What one sender, author or caller can do to others\n\n`%s`, %s; %s.\n\n", command, r.Date.UTC().Format("2006-01-02 15:04 UTC"), strings.Join(r.Versions, ", "))
	knows := fmt.Sprintf("`--hold %s`, `--retention %s`. GOMEMLIMIT is %d MiB, where three attack together %d MiB as installed", attackHold, attackRetention, attackMemory>>20, installedMemory>>20)
	if r.Long {
		knows = fmt.Sprintf("`--hold` and `--retention` at their defaults of 5 minutes, GOMEMLIMIT as installed, %d MiB", installedMemory>>20)
	}
	fmt.Fprintf(&w, "A real API server and HPA controller (sync %s); %d victims of %.0f requests a second, exactly, and a fleet of %d with 100 series each beside; %s.\n"+
		"Asked ten times a second: the victims' compiled query and metric without a query, and once a second a query for Prometheus' engine, while the attack lasts and until what it left is over. "+
		"Right is within 1 %%; held has a reason that names an attacker's address. The HPA's target is such that a held answer is 4 %% more than the truth, and asks for the %d replicas that there are. "+
		"Attackers are processes of the same machine that give way to what they attack (nice %d). Memory is what is not pages of files (RssAnon, ten times a second), at most 1.08 times GOMEMLIMIT. meshpulse runs in a control group with the limit of the base's container, %d MiB: its peak, with buffers of connections and the program's own pages, is at most %d.\n\n%s",
		attackSync, victims, truth/victims, fleetPods, knows, victims, attackNice, containerMemory>>20, containerMost>>20, attackHead)
	for _, x := range r.Results {
		w.WriteString(x.row() + "\n")
	}
	low, high, late := math.Inf(1), 0.0, 0.0
	for _, x := range r.Results {
		low, high, late = min(low, x.Load), max(high, x.Load), max(late, x.Late)
	}
	fmt.Fprintf(&w, "\nThe machine has %d CPUs and had a load of %.1f to %.1f before the attacks: beyond its CPUs, latencies say more of it than of them. "+
		"Victims' own senders missed the time of a flush by up to %.0f ms, which lowers a rate over 10 s for a moment, whoever computes it.\n", runtime.NumCPU(), low, high, late)
	fmt.Fprintf(&w, "\nSlow: p99 beyond %d times that before and beyond %d ms, or an answer of the engine beyond 4 s.\n", patience, hiccup)
	if !r.Long {
		r.capabilities(&w)
	}
	return w.String()
}

// capability is what somebody can do, by the attacks that show it, and what is said beside them.
type capability struct {
	who                  string
	down, up, hold, dies []string // attacks
	said                 [4]string
}

// effect says of one kind of harm what came of the attacks: "no", or what.
type effect func(attackResult) string

// fewer and more are answers, of the truth, that move replicas: beyond the HPA's tolerance of a
// tenth about target x replicas.
const fewer, more = 0.9 * victimTarget * victims / truth, 1.1 * victimTarget * victims / truth

// punctual is by how much victims' own senders may be late, in ms: beyond 1.1 intervals between
// samples Prometheus' rate takes the edge of its range for half an interval, which lowers it by 6 %
// of a pod's here, whoever computes it.
const punctual = 100

func loses(r attackResult) string {
	if r.Lowest < fewer && r.Late < punctual || r.Fewest < victims {
		return fmt.Sprintf("%s: lowest answer %.2f of the truth, %d replicas", r.Name, r.Lowest, r.Fewest)
	}
	return ""
}

func gains(r attackResult) string {
	if r.Highest > more || r.Most > victims {
		return fmt.Sprintf("%s: %.1f times the truth, for %.0f s, %d replicas", r.Name, r.Highest, r.Above, r.Most)
	}
	return ""
}

func holds(r attackResult) string {
	if not := r.Held + r.Unnamed + r.Missing; not > (r.Right+r.Wrong+not)/20 {
		return fmt.Sprintf("%s: %d of %d answers, the last %.0f s after it", r.Name, not, r.Right+r.Wrong+not, r.HeldAfter)
	}
	return ""
}

func kills(r attackResult) string {
	switch {
	case r.Exited:
		return r.Name + ": it exited"
	case r.Ended > 5, r.Memory > 1.08*r.Limit, r.Peak > containerMost>>20:
		return fmt.Sprintf("%s: %.0f MiB of %.0f, container %.0f MiB, ended in %.1f s", r.Name, r.Memory, r.Limit, r.Peak, r.Ended)
	case r.During > 4000:
		return fmt.Sprintf("%s: answers take %.1f s", r.Name, r.During/1000)
	}
	return ""
}

// capabilities is the table of who can do what, from what was seen.
func (r attackReport) capabilities(w *strings.Builder) {
	fmt.Fprintf(w, "\n## Who can do what\n\nFrom the runs above, for metrics without a query and for queries with `reporter=\"destination\"`: yes is an answer that moves replicas (beyond an HPA's tolerance of a tenth), or other replicas than %d; low answers of a run in which the victims' own senders were late by more than %d ms are not counted as an attacker's; in brackets what was tried and did not do it. "+
		"A query without a reporter, or of `source`, adds up what callers say: whoever may report raises it (event `CallersWord` has the form that does not).\n\n"+
		"| who | scale down | scale up | hold | meshpulse itself (exit, memory, SIGTERM, answers beyond 4 s) |\n|---|---|---|---|---|\n", victims, punctual)
	for _, c := range capabilityTable() {
		cells := []string{r.cell(c.down, loses, c.said[0]), r.cell(c.up, gains, c.said[1]), r.cell(c.hold, holds, c.said[2]), r.cell(c.dies, kills, c.said[3])}
		fmt.Fprintf(w, "| %s | %s |\n", c.who, strings.Join(cells, " | "))
	}
	w.WriteString("\n" + notTried + "\n")
}

// notTried is said below the table, so that nobody takes its no for the whole answer.
const notTried = `"No" is of what was tried: attacks beside victims that report all the time. Nobody reported in the place of a victim that is silent (from an address that is no pod's), and nobody forged a surge for an HPA that acts at surges: who could, and what is to be done about it, is in [trust](../../envoystats/README.md#trust).`

func (r attackReport) cell(names []string, seen effect, said string) string {
	var can, not []string
	for _, name := range names {
		for _, x := range r.Results {
			if x.Name != name {
				continue
			}
			if what := seen(x); what != "" {
				can = append(can, what)
			} else {
				not = append(not, name)
			}
		}
	}
	var text []string
	switch {
	case len(can) > 0:
		text = append(text, "**yes**, "+strings.Join(can, "; "))
	case len(not) > 0:
		text = append(text, "no")
	case said == "":
		text = append(text, "not tried")
	}
	if len(not) > 0 {
		text = append(text, "("+strings.Join(not, ", ")+")")
	}
	return strings.Trim(strings.Join(text, " ")+" "+said, " ")
}

func capabilityTable() []capability {
	floods := []string{"identifiers", "gzip", "podflood", "oddnames", "padding", "onebyte", "labelflood", "trickle", "connections", "descriptors", "warnings", "settings", "resets", "emptydata", "continuation", "hostflood"}
	return []capability{
		{
			who: "reaches the ingest port, plaintext, and reports as anybody", down: []string{"zero", "posed", "steal", "slowone", "newnames"}, up: []string{"unknown", "phantom", "waypoint"},
			hold: append([]string{"steal", "zero", "posed", "slowone", "newnames", "unknown", "phantom", "waypoint"}, floods...), dies: floods,
		},
		{
			who: "runs a pod in another namespace, and reports as that pod", down: []string{"slowone", "phantom"}, up: []string{"phantom"},
			hold: []string{"slowone", "phantom", "labelflood", "hostflood"}, dies: floods,
		},
		{who: "shares the victims' service account", said: [4]string{"as who reports as anybody, here in plaintext; with a certificate an address that is another pod's refuses (make lab-mtls)", "as that", "as that", "as that"}},
		{who: "calls a service, and chooses its headers", down: []string{"hostflood"}, hold: []string{"hostflood"}, dies: []string{"hostflood"}, said: [4]string{1: "makes real load"}},
		{who: "writes an HPA in a namespace of its own", down: []string{"hpas"}, up: []string{"hpas"}, hold: []string{"hpas"}, dies: []string{"hpas"}, said: [4]string{1: "but of its own"}},
		{who: "reaches the HTTPS port without a token", down: []string{"https", "tokens"}, up: []string{"https", "tokens"}, hold: []string{"https", "tokens"}, dies: []string{"https", "tokens"}},
		{
			who: "writes to `--hpa-dir` or the certificate's files (standalone: an operator)", down: []string{"files", "certificate"}, up: []string{"files", "certificate"},
			hold: []string{"files", "certificate"}, dies: []string{"files", "certificate"}, said: [4]string{"but by its own HPAs", "but by its own HPAs"},
		},
	}
}
