package metricsapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// Several replicas and who looks on: explanations, pods, queries, Prometheus' HTTP API. As for
// answers, whoever knows all asks nobody, and what is known in full counts before what is not. Of
// explanations and pods each is taken from whoever has the fewer doubts of it, and the decisions of
// the last hour are those of both: the API server asks now the one, now the other.

// view is what one replica asks another to be shown. Nobody scales by it.
type view struct {
	// Resource is one of the group's own API, or prometheus.
	Resource, Namespace, Name string
	// At is the instant of an explanation, zero for now.
	At time.Time
	// Query is that of queries.
	Query *explain.QuerySpec `json:",omitempty"`
	// Path and Form are a request of Prometheus' HTTP API.
	Path string     `json:",omitempty"`
	Form url.Values `json:",omitempty"`
}

const viewPrometheus = "prometheus"

// PrometheusAnswer is what one replica answers to a request of Prometheus' HTTP API.
type PrometheusAnswer struct {
	Code int    // of HTTP
	Text []byte // the body, JSON
	// Incomplete says why it is not all that could be known, "" if it is.
	Incomplete string
}

// AnswerPrometheus sets what answers other replicas' requests of Prometheus' HTTP API, from what
// this one has. It is called before Run.
func (s *Server) AnswerPrometheus(f func(ctx context.Context, path string, form url.Values) PrometheusAnswer) {
	s.prometheus = f
}

// Prometheus returns what counts of a request of Prometheus' HTTP API: what this replica answers,
// or what the other owner does that knows more.
func (s *Server) Prometheus(ctx context.Context, path string, form url.Values, own PrometheusAnswer) PrometheusAnswer {
	s.ask(ctx, view{Resource: viewPrometheus, Path: path, Form: form}, own.Incomplete, func(r reply, first bool) bool {
		var other PrometheusAnswer
		if json.Unmarshal(r.View, &other) != nil || other.Code != http.StatusOK || !counts(own.Incomplete, other.Incomplete, first) {
			return false
		}
		own = other
		return true
	})
	return own
}

// Incomplete says why what this replica has of an expression at a time is not all that could be
// known, "" if it is.
func (s *Server) Incomplete(ctx context.Context, expr string, at time.Time) string {
	query := s.provider.catalog.adhoc.acquire("", expr)
	defer query.release()
	v, a, refused := s.provider.rules.evaluate(ctx, "the query", nil, query, at)
	return s.provider.rules.incomplete(v, a, refused)
}

// counts says whether what another replica has counts before what this one has; first: that is an
// owner before this one.
func counts(own, other string, first bool) bool {
	return own != "" && (other == "" || first)
}

// ask asks the other owners for a view that is not complete here. better is told what they say and
// whether they come before whoever counts so far, and says whether that counts.
func (s *Server) ask(ctx context.Context, v view, incomplete string, better func(r reply, first bool) bool) {
	p := s.provider
	if p.replicas == nil || incomplete == "" {
		return
	}
	first := true
	for _, name := range p.replicas.Owners(v.Namespace) {
		if name == p.replicas.Self() {
			first = false
			continue
		}
		r, outcome := p.askReply(ctx, name, question{View: &v}, askAny)
		if outcome == "" && r.View != nil {
			outcome = askedWorse
			if better(r, first) {
				outcome, first = askedBetter, false
			}
		} else if outcome == "" { // it has no such thing, or is of another version
			outcome = askedWorse
		}
		p.metrics.asked.WithLabelValues(outcome).Inc()
	}
}

// show is what this replica itself has.
func (s *Server) show(ctx context.Context, v view) (r reply) {
	var answer any
	var err error
	switch v.Resource {
	case "explanations":
		if v.Name != "" {
			answer, err = s.explanationHere(ctx, v.Namespace, v.Name, v.At)
		} else {
			answer, err = s.explanationsHere(ctx, v.Namespace)
		}
	case "pods":
		answer, err = s.sidecarsHere(v.Namespace)
	case "queries":
		if v.Query == nil || v.Query.Validate() != nil {
			err = errors.New("no query")
			break
		}
		answer, r.Incomplete, err = s.queryHere(ctx, *v.Query)
	case viewPrometheus:
		if s.prometheus == nil {
			err = errors.New("no Prometheus API is served (--prometheus-address)")
			break
		}
		answer = s.prometheus(ctx, v.Path, v.Form)
	default:
		err = errors.New("not known here: " + v.Resource)
	}
	if err == nil {
		r.View, err = json.Marshal(answer)
	}
	if err != nil {
		return reply{Outcome: outcomeFailed, Message: err.Error()}
	}
	return r
}

// explanation is one HPA's, at an instant or now.
func (s *Server) explanation(ctx context.Context, namespace, name string, at time.Time) (any, error) {
	e, err := s.explanationHere(ctx, namespace, name, at)
	// Always, for the decisions of the last hour.
	s.ask(ctx, view{Resource: "explanations", Namespace: namespace, Name: name, At: at}, "its history", func(r reply, first bool) bool {
		var other explain.Explanation
		if json.Unmarshal(r.View, &other) != nil || other.Name != name || other.Namespace != namespace {
			return false
		}
		if err != nil {
			e, err = other, nil
			return true
		}
		counts := other.Less(&e, first)
		if counts {
			e, other = other, e
		}
		e.WithHistory(&other)
		for i := range e.Metrics {
			e.Metrics[i].HeldSince = heldSince(e.Metrics[i].History, e.Metrics[i].Rule)
		}
		return counts
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// explanations are those of a namespace, "" of all.
func (s *Server) explanations(ctx context.Context, namespace string) (any, error) {
	list, err := s.explanationsHere(ctx, namespace)
	if err != nil {
		return nil, err
	}
	doubtful := ""
	if slices.ContainsFunc(list.Items, func(e explain.Explanation) bool { return e.Doubtful() }) || len(list.Items) == 0 {
		doubtful = "one of them"
	}
	s.ask(ctx, view{Resource: "explanations", Namespace: namespace}, doubtful, func(r reply, first bool) (counts bool) {
		var other explain.List
		if json.Unmarshal(r.View, &other) != nil {
			return false
		}
		list.Items, counts = better(list.Items, other.Items, func(a, b *explain.Explanation) bool { return a.Less(b, first) }, func(e *explain.Explanation) metav1.Object { return e })
		return counts
	})
	return list, nil
}

// sidecars are the pods of a namespace, "" of all, that have reported, and those that should.
func (s *Server) sidecars(ctx context.Context, namespace string) (any, error) {
	list, err := s.sidecarsHere(namespace)
	if err != nil {
		return nil, err
	}
	doubtful := ""
	if slices.ContainsFunc(list.Items, func(p explain.Sidecar) bool { return p.State.Doubtful() }) || len(list.Items) == 0 {
		doubtful = "one of them"
	}
	s.ask(ctx, view{Resource: "pods", Namespace: namespace}, doubtful, func(r reply, _ bool) (counts bool) {
		var other explain.Sidecars
		if json.Unmarshal(r.View, &other) != nil {
			return false
		}
		list.Items, counts = better(list.Items, other.Items, func(a, b *explain.Sidecar) bool { return a.State.Better(b.State) }, func(p *explain.Sidecar) metav1.Object { return p })
		return counts
	})
	return list, nil
}

// better takes of two lists what either has, and of what both have the better. It reports whether
// something of the other list was taken.
func better[T any](own, others []T, than func(a, b *T) bool, of func(*T) metav1.Object) (all []T, taken bool) {
	key := func(t *T) string { return of(t).GetNamespace() + "/" + of(t).GetName() }
	places := map[string]int{}
	for i := range own {
		places[key(&own[i])] = i
	}
	for i := range others {
		at, known := places[key(&others[i])]
		if !known {
			own, taken = append(own, others[i]), true
		} else if than(&others[i], &own[at]) {
			own[at], taken = others[i], true
		}
	}
	slices.SortStableFunc(own, func(a, b T) int {
		return cmp.Or(cmp.Compare(of(&a).GetNamespace(), of(&b).GetNamespace()), cmp.Compare(of(&a).GetName(), of(&b).GetName()))
	})
	return own, taken
}

// queryStatus is what comes of a query.
func (s *Server) queryStatus(ctx context.Context, spec explain.QuerySpec) (*explain.QueryStatus, error) {
	status, incomplete, err := s.queryHere(ctx, spec)
	if err != nil {
		return nil, err
	}
	s.ask(ctx, view{Resource: "queries", Namespace: s.keptOf(spec.Query), Query: &spec}, incomplete, func(r reply, first bool) bool {
		var other explain.QueryStatus
		if !counts(incomplete, r.Incomplete, first) || json.Unmarshal(r.View, &other) != nil || other.Series == nil {
			return false
		}
		status, incomplete = &other, r.Incomplete
		return true
	})
	return status, nil
}

// keptOf is the namespace whose owners keep what an expression selects, "" where it may be several.
func (s *Server) keptOf(expr string) string {
	query := s.provider.catalog.adhoc.acquire("", expr)
	defer query.release()
	if query.query == nil {
		return ""
	}
	return query.query.Namespace()
}

// queryHere is what comes of a query of what this replica has, and why that is not all.
func (s *Server) queryHere(ctx context.Context, spec explain.QuerySpec) (status *explain.QueryStatus, incomplete string, err error) {
	if status, err = s.evaluateQuery(ctx, spec); err == nil && s.provider.replicas != nil {
		incomplete = s.Incomplete(ctx, spec.Query, s.provider.now().Add(-duration(spec.AgoSeconds)))
	}
	return status, incomplete, err
}
