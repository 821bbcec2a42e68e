package explain

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// lines are printed line by line, each as Printable leaves it.
type lines struct{ strings.Builder }

func (l *lines) add(format string, args ...any) {
	l.WriteString(strings.TrimRight(Printable(fmt.Sprintf(format, args...)), " "))
	l.WriteByte('\n')
}

// fact is a line of a name and what is known.
func (l *lines) fact(name, format string, args ...any) {
	l.add("  %-14s %s", name, fmt.Sprintf(format, args...))
}

// Text explains in sentences and numbers. The first three lines are what is wrong, its cause and
// its remedy.
func (e *Explanation) Text() string {
	l := &lines{}
	e.head(l)
	l.add("")
	l.add("%s: %d replicas are meant, %d are there (%s); limits %d to %d", e.Target, e.Replicas.Spec, e.Replicas.Status, from(e.Replicas.From), e.MinReplicas, e.MaxReplicas)
	for i := range e.Metrics {
		l.add("")
		e.metric(l, &e.Metrics[i])
	}
	if e.Others > 0 {
		l.add("")
		l.add("%s of the HPA %s not meshpulse's (CPU, memory, …), and the controller takes the largest of all", counted(e.Others, "metric", "metrics"), be(e.Others))
	}
	l.add("")
	e.decision(l)
	e.changes(l)
	if len(e.Events) > 0 {
		l.add("")
		l.add("Events")
		for _, p := range e.Events {
			l.add("  %s: %s", p.Reason, p.Message)
		}
	}
	return l.String()
}

func be(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func from(source string) string {
	switch source {
	case "scale":
		return "by its scale"
	case "sidecars":
		return "as many as sidecars report"
	}
	return "by the HPA's status"
}

// head is the first lines.
func (e *Explanation) head(l *lines) {
	if len(e.Troubles) == 0 {
		l.add("%s/%s: nothing is wrong%s", e.Namespace, e.Name, e.asOf())
		l.add("Cause: %s", e.inShort())
		l.add("Remedy: none is needed")
		return
	}
	first := e.Troubles[0]
	l.add("%s/%s: %s%s", e.Namespace, e.Name, first.What, e.asOf())
	l.add("Cause: %s", first.Cause)
	l.add("Remedy: %s", first.Remedy)
	for _, t := range e.Troubles[1:] {
		l.add("")
		l.add("Also: %s", t.What)
		l.add("  Cause: %s", t.Cause)
		l.add("  Remedy: %s", t.Remedy)
	}
}

func (e *Explanation) asOf() string {
	if ago := e.Now.Sub(e.At); ago >= time.Second {
		return fmt.Sprintf(" (as of %s ago; pods, replicas and events as they are now)", age(ago))
	}
	return ""
}

// inShort is an HPA of which nothing is wrong.
func (e *Explanation) inShort() string {
	var parts []string
	for _, m := range e.Metrics {
		if m.Asks != nil {
			parts = append(parts, fmt.Sprintf("%s is %s against a target of %s, which asks for %s", m.Name, plain(m.Value), m.Target, counted(int(m.Asks.Replicas), "replica", "replicas")))
		}
	}
	if len(parts) == 0 {
		return "no metric of it is meshpulse's"
	}
	return strings.Join(parts, "; ")
}

func (e *Explanation) metric(l *lines, m *Metric) {
	each := ""
	if m.TargetType != "Value" {
		each = " for each replica"
	}
	selector := ""
	if m.Selector != "" {
		selector = " {" + m.Selector + "}"
	}
	l.add("%s%s, target %s%s", m.Name, selector, m.Target, each)
	if m.Expression != "" {
		l.fact("understood as", "%s", strings.Join(strings.Fields(m.Expression), " "))
	}
	m.answer(l)
	if m.Expression != "" {
		m.window(l)
		m.pods(l, e.At)
		m.surge(l)
	}
	if a := m.Asks; a != nil {
		l.fact("asks for", "%s", m.arithmetic(e, a))
	}
	m.past(l)
}

// answer is what is seen against what is answered, and by which rule.
func (m *Metric) answer(l *lines) {
	seen := m.Seen
	if seen == "" {
		seen = "nothing"
	}
	if m.Error != "" {
		l.fact("seen", "%s", plain(seen))
		l.fact("answered", "nothing: %s", m.Error)
		return
	}
	l.fact("seen", "%s", plain(seen))
	l.fact("answered", "%s, %s", plain(m.Value), ruleText(m.Rule))
	if m.Reason != "" {
		l.fact("because", "%s", m.Reason)
	}
}

func ruleText(r Rule) string {
	switch r {
	case RuleIdle:
		return "since it is known that there was no request"
	case RuleEarlier:
		return "as of the newest time that every sidecar has covered: one of them is late, or load has moved between pods"
	case RuleSurge:
		return "the rate in the surge, which is more"
	case RuleMore:
		return "though not all is known: it asks for more replicas than there are"
	case RuleEstimated:
		return "with mute sidecars counted as the mean of the others"
	case RuleHeld:
		return "which keeps the replicas while not all is known"
	case RuleRaised:
		return "which keeps the replicas that a surge has raised until their sidecars have reported"
	}
	return "as it is seen"
}

func (m *Metric) window(l *lines) {
	known := "known in full"
	if m.CoveredSeconds < m.WindowSeconds {
		known = fmt.Sprintf("known for %s of it", seconds(m.CoveredSeconds))
	}
	if m.WindowSeconds == 0 {
		known = "none: it looks at the newest values"
	}
	newest := "no sample"
	if m.AgeSeconds != nil {
		newest = fmt.Sprintf("newest sample %s old", seconds(*m.AgeSeconds))
	}
	l.fact("window", "%s, %s; %s, flushes every %s, %s", seconds(m.WindowSeconds), known, newest, seconds(m.FlushSeconds), counted(m.Series, "series", "series"))
}

func (m *Metric) pods(l *lines, at time.Time) {
	proven := ""
	if m.Proven != nil {
		proven = fmt.Sprintf(", %d of them have proven who they are", *m.Proven)
	}
	l.fact("sidecars", "%d of %d report%s", m.Reporting, m.Expected, proven)
	rows := [][]string{}
	for _, p := range m.Pods {
		last := "never"
		if p.LastFlush != nil {
			last = age(at.Sub(*p.LastFlush)) + " ago"
		}
		value := p.Value
		if value == "" {
			value = "-"
		}
		proof := ""
		if p.Proven != nil && !*p.Proven {
			proof = "unproven"
		}
		rows = append(rows, []string{"   ", p.Name, string(p.State), last, value, proof, p.Why})
	}
	if len(rows) > 0 {
		for _, row := range Align(append([][]string{{"   ", "POD", "STATE", "FLUSH", "VALUE", "", ""}}, rows...)) {
			l.WriteString(row + "\n") // Align prints no cell as it is
		}
	}
	if m.PodsLeftOut > 0 {
		l.add("    … and %d more", m.PodsLeftOut)
	}
}

func (m *Metric) surge(l *lines) {
	s := m.Surge
	if s == nil {
		l.fact("surge test", "off (meshpulse.io/surge-window)")
		return
	}
	test := fmt.Sprintf("a surge is %g times the minute before over the last %s, and less likely by chance than %g", s.Ratio, seconds(s.WindowSeconds), s.TailLimit)
	switch {
	case s.Active:
		l.fact("surge test", "ON: %s/s, %s/s before, by chance %.1g; %s", number(s.Rate), number(s.Baseline), s.Tail, test)
	case !s.Ready:
		l.fact("surge test", "not yet: a complete minute of all pods is needed; %s", test)
	default:
		l.fact("surge test", "none; %s", test)
	}
}

// arithmetic is the controller's for one metric.
func (m *Metric) arithmetic(e *Explanation, a *Asks) string {
	n, value := counted(int(a.Replicas), "replica", "replicas"), plain(m.Value)
	if m.TargetType == "Value" {
		if a.WithinTolerance {
			return fmt.Sprintf("%s: %s / %s = %s, within the tolerance", n, value, m.Target, ratio(a.Ratio))
		}
		return fmt.Sprintf("%s: %s / %s = %s times the %d ready pods, rounded up", n, value, m.Target, ratio(a.Ratio), e.Replicas.Status)
	}
	if a.WithinTolerance {
		return fmt.Sprintf("%s: %s / (%s x %d) = %s, within the tolerance, so what is there", n, value, m.Target, e.Replicas.Status, ratio(a.Ratio))
	}
	return fmt.Sprintf("%s: %s / %s, rounded up", n, value, m.Target)
}

// past says what the last hour was like, in a line.
func (m *Metric) past(l *lines) {
	if len(m.History) == 0 {
		return
	}
	held, refused, first := 0, 0, m.History[0]
	for _, p := range m.History {
		switch p.Rule {
		case RuleHeld:
			held++
		case RuleRefused:
			refused++
		}
	}
	last := m.History[len(m.History)-1]
	l.fact("last hour", "%d decisions over %s, %d held, %d without an answer", len(m.History), age(last.At.Sub(first.At)), held, refused)
}

// decision is what the controller makes of all.
func (e *Explanation) decision(l *lines) {
	d := e.Decision
	switch {
	case d == nil:
		l.add("The controller: what it makes of this is not known")
		return
	case d.Why != "":
		l.add("The controller asks for %d replicas: %s", d.Replicas, d.Why)
		return
	}
	l.add("The controller asks for %d replicas", d.Replicas)
	l.fact("metrics", "the largest of what they ask for is %d", d.Recommended)
	if d.Stabilized != d.Recommended {
		l.fact("windows", "leave %d: within %s it asked for that already", d.Stabilized, seconds(d.DownscaleSeconds))
	}
	if d.Bound != "" {
		l.fact("bound by", "%s, which leaves %d of %d", boundText(d.Bound, e), d.Replicas, d.Stabilized)
	}
}

func boundText(b string, e *Explanation) string {
	switch b {
	case "minReplicas":
		return fmt.Sprintf("minReplicas (%d)", e.MinReplicas)
	case "maxReplicas":
		return fmt.Sprintf("maxReplicas (%d)", e.MaxReplicas)
	case "step":
		return "the largest step of one look (twice the replicas, or 4)"
	case "policy":
		return "the behavior's policies"
	}
	return b
}

// changes says what would change the answer.
func (e *Explanation) changes(l *lines) {
	l.add("What would change it")
	n := 0
	for _, m := range e.Metrics {
		if up, down, ok := m.edges(e); ok {
			n++
			l.add("  %s above %s asks for more than %d replicas, below %s for fewer", m.Name, up, e.Replicas.Status, down)
		}
		if m.Rule == RuleHeld || m.Rule == RuleMore {
			n++
			l.add("  a flush of each of the sidecars that are not reporting, their deletion, or the end of --hold: what is seen counts then")
		}
	}
	if e.Decision != nil && e.Decision.Bound == "maxReplicas" {
		n++
		l.add("  a larger maxReplicas: the metrics ask for %d", e.Decision.Recommended)
	}
	if n == 0 {
		l.add("  a value: there is none to go by")
	}
}

// edges are the values beyond which a metric of type AverageValue asks for another number.
func (m *Metric) edges(e *Explanation) (up, down string, ok bool) {
	if m.Asks == nil || m.TargetType == "Value" || e.Decision == nil {
		return "", "", false
	}
	target, err := resource.ParseQuantity(m.Target)
	if err != nil {
		return "", "", false
	}
	keeps := target.AsApproximateFloat64() * float64(e.Replicas.Status)
	return number(keeps * (1 + e.Decision.ToleranceUp)), number(keeps * (1 - e.Decision.ToleranceDown)), true
}

// age is a duration for people.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + "s"
	case d < time.Minute:
		return fmt.Sprintf("%.0fs", d.Seconds())
	}
	d = d.Round(time.Second)
	h, m, s := int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60
	switch {
	case h > 0:
		return fmt.Sprintf("%dh%dm", h, m)
	case s == 0:
		return fmt.Sprintf("%dm", m)
	}
	return fmt.Sprintf("%dm%ds", m, s)
}

func seconds(s float64) string { return age(time.Duration(s * float64(time.Second))) }

// number is a value for people: four significant digits.
func number(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "?"
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

// plain is a quantity as people write it: 6.042 for 6042m.
func plain(quantity string) string {
	q, err := resource.ParseQuantity(quantity)
	if err != nil {
		return quantity
	}
	return strconv.FormatFloat(math.Round(1000*q.AsApproximateFloat64())/1000, 'f', -1, 64)
}

func ratio(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }
