package metricsapi

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// Verdict is what would become of an HPA, as far as it can be told without sidecars.
type Verdict string

const (
	VerdictServed   Verdict = "served"
	VerdictDoubtful Verdict = "doubtful"      // it works, and its author should know something
	VerdictRefused  Verdict = "not servable"  // a metric of it gets no value
	VerdictOthers   Verdict = "not concerned" // none of its metrics is meshpulse's
)

// Finding is what Lint says of one HPA or ScaledObject.
type Finding struct {
	File      string  `json:"file"`
	Kind      string  `json:"kind"`
	Namespace string  `json:"namespace"`
	Name      string  `json:"name"`
	Verdict   Verdict `json:"verdict"`
	// Problems are the Warning events that it would get, with the better forms.
	Problems []hpas.Problem `json:"problems,omitempty"`
	// Replacement is the HPA in place of a ScaledObject, and Differs what of that it has not.
	Replacement *autoscalingv2.HorizontalPodAutoscaler `json:"replacement,omitempty"`
	Differs     []string                               `json:"differs,omitempty"`
	// Scaler is the ScaledObject that keeps what an HPA has not, and asks meshpulse by KEDA's
	// external scaler.
	Scaler map[string]any `json:"externalScaler,omitempty"`
	// AlsoIn is an earlier file that has an object of this kind and name: what is applied last
	// counts.
	AlsoIn string `json:"alsoIn,omitempty"`
	// Cluster is what a cluster tells of it; nil where none was asked.
	Cluster *InCluster `json:"cluster,omitempty"`
}

// Unread is a document that is no object, or no HPA that can be read.
type Unread struct {
	File  string `json:"file"`
	Line  int    `json:"line"`
	Error string `json:"error"`
}

// Report is what a Lint has found.
type Report struct {
	Findings []Finding `json:"findings"`
	Unread   []Unread  `json:"unread"`
	// Files, and the objects in them by kind, are what was looked at.
	Files   int            `json:"files"`
	Objects map[string]int `json:"objects"`
	// Cluster is nil where none was looked at.
	Cluster *LookedAt `json:"cluster,omitempty"`
}

// Failed says whether something cannot be served, or be read.
func (r Report) Failed() bool {
	return len(r.Unread) > 0 || slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Verdict == VerdictRefused })
}

// Lint reads HPAs as a server does, and KEDA's ScaledObjects as the HPAs that would take their
// place. All that it is given are judged together: HPAs of two files may scale the same target, or
// have two queries by one name.
type Lint struct {
	// Words are what sidecars can send.
	Words hpas.Vocabulary

	subjects []subject
	report   Report
	look     *cluster.Look // nil: no cluster
}

// subject is one object that is judged. hpa is nil where nothing of it is meshpulse's business;
// asks says whether it should have been.
type subject struct {
	finding Finding
	hpa     *hpas.HPA
	asks    bool
}

// Add reads what a file holds. What of it cannot be read is in the report, and takes nothing else
// with it.
func (l *Lint) Add(path string, data []byte) {
	l.report.Files++
	l.read(path, data)
}

func (l *Lint) read(path string, data []byte) {
	file := hpas.Decode(path, data)
	for i := range file.HPAs {
		h := &file.HPAs[i]
		l.add(subject{hpa: h, finding: Finding{File: path, Kind: "HorizontalPodAutoscaler", Namespace: h.Namespace, Name: h.Name}})
	}
	for _, kind := range file.Ignored {
		l.count(cmp.Or(kind, "object without a kind"), 1)
	}
	objects, bad := hpas.DecodeScaledObjects(path, data)
	l.count("keda.sh/v1alpha1 ScaledObject", -len(objects)) // which are others to what reads HPAs
	for _, o := range objects {
		s := subject{asks: o.Asks, finding: Finding{File: path, Kind: "ScaledObject", Namespace: o.Namespace, Name: o.Name, Differs: o.Differs, Scaler: o.Scaler}}
		if o.HPA != nil {
			s.finding.Replacement = o.HPA.HorizontalPodAutoscaler
			judged := o.KEDAs()
			s.hpa = &judged
		}
		l.add(s)
	}
	for _, r := range append(file.Refused, bad...) {
		l.report.Unread = append(l.report.Unread, Unread{path, r.Line, r.Err.Error()})
	}
}

func (l *Lint) add(s subject) {
	l.count(s.finding.Kind, 1)
	for _, other := range l.subjects {
		f := other.finding
		if f.Kind == s.finding.Kind && f.Namespace == s.finding.Namespace && f.Name == s.finding.Name {
			s.finding.AlsoIn = f.File
		}
	}
	l.subjects = append(l.subjects, s)
}

// Report judges all that was added. The error is of a cluster that cannot be read.
func (l *Lint) Report(ctx context.Context) (Report, error) {
	var together []hpas.HPA
	for _, s := range l.subjects {
		if s.hpa != nil && s.finding.AlsoIn == "" {
			together = append(together, *s.hpa)
		}
	}
	all, err := judgeAll(together, l.Words)
	if err != nil {
		return Report{}, err
	}
	r := l.report
	r.Findings, r.Unread = []Finding{}, append([]Unread{}, r.Unread...)
	wirings := map[string]map[string]*cluster.Wiring{} // by namespace and workload
	for _, s := range l.subjects {
		among := all
		if s.hpa != nil && s.finding.AlsoIn != "" { // there is only one of a name in a cluster
			if among, err = judgeAll([]hpas.HPA{*s.hpa}, l.Words); err != nil {
				return Report{}, err
			}
		}
		f := s.judged(among)
		if err := l.inspect(ctx, s, &f, wirings); err != nil {
			return Report{}, err
		}
		r.Findings = append(r.Findings, f)
	}
	return r, nil
}

// judgement is what became of an HPA.
type judgement struct {
	verdict  Verdict
	problems []hpas.Problem
}

func (s subject) judged(among map[types.NamespacedName]judgement) Finding {
	f := s.finding
	f.Verdict = VerdictOthers
	switch {
	case s.hpa != nil:
		j := among[s.hpa.Key()]
		f.Verdict, f.Problems = j.verdict, j.problems
	case s.asks:
		f.Verdict = VerdictRefused
	}
	if f.Verdict == VerdictServed && len(f.Differs) > 0 {
		f.Verdict = VerdictDoubtful
	}
	return f
}

// judgeAll makes the HPAs those of a catalog over an empty store, and looks at it as a server
// would.
func judgeAll(list []hpas.HPA, words hpas.Vocabulary) (map[types.NamespacedName]judgement, error) {
	store, err := aggregator.New(aggregator.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	c := newCatalog(store, newWarner(func(hpas.HPA, hpas.Problem) {}, newMetrics(prometheus.NewRegistry())))
	c.words = words
	defer c.Close()
	c.Replace(list)
	found := map[types.NamespacedName]judgement{}
	for _, h := range list { // what is missing afterwards a server contains as a fault
		found[h.Key()] = judgement{VerdictRefused, []hpas.Problem{hpas.Problemf(hpas.ReasonBadQuery, "reading it is a fault of meshpulse's: please report it")}}
	}
	for _, h := range c.current.Load().hpas {
		found[h.Key()] = c.judgement(h)
	}
	return found, nil
}

func (c *catalog) judgement(h hpaState) judgement {
	j := judgement{problems: slices.Clone(h.problems)}
	refused := len(h.Unserved) > 0
	for i, w := range h.Metrics {
		o, p := h.offers[i], c.prepared[queryKeyOf(h.Wants, w)]
		if w.Expr == "" || o == nil || o.prepared.err != nil || p.err != nil || len(p.never) > 0 {
			refused = true
			continue
		}
		why, problems := c.unreportable(o, p)
		refused = refused || why != ""
		for _, problem := range problems {
			if !slices.Contains(j.problems, problem) {
				j.problems = append(j.problems, problem)
			}
		}
	}
	for _, p := range h.problems { // an API server refuses the whole HPA
		refused = refused || p.Reason == hpas.ReasonBadMetric
	}
	others := !slices.ContainsFunc(j.problems, func(p hpas.Problem) bool { return p.Reason != hpas.ReasonSharedTarget })
	switch {
	case refused:
		j.verdict = VerdictRefused
	case len(h.Metrics) == 0 && others:
		j.verdict = VerdictOthers
	case len(j.problems) > 0:
		j.verdict = VerdictDoubtful
	default:
		j.verdict = VerdictServed
	}
	return j
}

// unreportable says of a query's parts what no sidecar sends by what is known of Istio: a metric, a
// label or a reporter that is misspelt. A server says it once sidecars report; why is not "" where
// the query then gets no value.
func (c *catalog) unreportable(o *offer, p *prepared) (why string, problems []hpas.Problem) {
	a := aggregator.Answer{Coverage: aggregator.Coverage{Reporting: 1, Matched: 1}}
	for i, part := range p.Parts {
		at := aggregator.Absent{Selector: i, UnknownMetric: !c.words.Metric(part), UnknownLabels: part.UnknownLabels(c.words)}
		if at.UnknownMetric || len(at.UnknownLabels) > 0 || part.NoReporter() {
			a.Absent = append(a.Absent, at)
		}
	}
	r := rules{words: c.words}
	if why, _ = r.missing(p, a, p.absent(a)); why != "" {
		problems = []hpas.Problem{{Reason: hpas.ReasonNotReported, Message: fmt.Sprintf("metric %s gets no value: %s", o, why)}}
	} else {
		problems = r.remarks(o, p, a)
	}
	for _, part := range p.Parts {
		for _, impossible := range part.Impossible() {
			problems = append(problems, hpas.Problemf(hpas.ReasonUnreportedValue, "metric %s: %s. It counts as none", o, impossible))
		}
	}
	return why, problems
}

func (l *Lint) count(kind string, n int) {
	if l.report.Objects == nil {
		l.report.Objects = map[string]int{}
	}
	if l.report.Objects[kind] += n; l.report.Objects[kind] == 0 {
		delete(l.report.Objects, kind)
	}
}
