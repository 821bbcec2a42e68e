package metricsapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	genericrequest "k8s.io/apiserver/pkg/endpoints/request"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// The API of a group of meshpulse's own: why numbers are what they are, which pods report, and
// queries. An APIService brings requests here through the API server, which asks who may: so it
// takes neither a port-forward nor a token of one's own, and stands beside the external metrics
// API, whoever serves that. Its resources are no objects that somebody keeps: each request computes
// them.

// The paths of the group and of its version, of explain.Group and explain.APIVersion.
const (
	ownPath        = "/apis/meshpulse.io"
	ownVersionPath = "/apis/meshpulse.io/v1alpha1"
)

// maxQueryBytes bounds the body of a query.
const maxQueryBytes = 64 << 10

// ownResources are what discovery tells.
func ownResources() []metav1.APIResource {
	return []metav1.APIResource{
		{Name: "explanations", SingularName: "explanation", Namespaced: true, Kind: "Explanation", Verbs: metav1.Verbs{"get", "list"}},
		{Name: "pods", SingularName: "pod", Namespaced: true, Kind: "Sidecar", Verbs: metav1.Verbs{"list"}},
		{Name: "queries", SingularName: "query", Namespaced: false, Kind: "Query", Verbs: metav1.Verbs{"create"}},
	}
}

func ownGroup() metav1.APIGroup {
	version := metav1.GroupVersionForDiscovery{GroupVersion: explain.APIVersion, Version: explain.Version}
	return metav1.APIGroup{
		TypeMeta: metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}, Name: explain.Group,
		Versions: []metav1.GroupVersionForDiscovery{version}, PreferredVersion: version,
	}
}

// serveOwn answers a request of the group. Who asks has been let in for the resource, the verb and
// the namespace of its path.
func (s *Server) serveOwn(w http.ResponseWriter, r *http.Request) {
	leave, refused := s.provider.enter(r.Context())
	if refused != nil {
		writeObject(w, toStatus(refused))
		return
	}
	defer leave()
	answer, err := s.own(r)
	if err != nil {
		writeObject(w, err)
		return
	}
	writeObject(w, answer)
}

// own is the answer, or an error in the API's form.
func (s *Server) own(r *http.Request) (any, error) {
	switch r.URL.Path {
	case ownPath, ownPath + "/":
		return ownGroup(), nil
	case ownVersionPath, ownVersionPath + "/":
		return metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: explain.APIVersion, APIResources: ownResources()}, nil
	}
	info, ok := genericrequest.RequestInfoFrom(r.Context())
	if !ok || !info.IsResourceRequest || info.APIGroup != explain.Group || info.APIVersion != explain.Version || info.Subresource != "" {
		return nil, apierrors.NewGenericServerResponse(http.StatusNotFound, "get", explain.Resource(""), "", "there is nothing at "+r.URL.Path, 0, true)
	}
	if err := s.source.Synced(); err != nil {
		return nil, apierrors.NewServiceUnavailable(err.Error())
	}
	switch info.Resource + " " + info.Verb {
	case "explanations get":
		at, err := s.instantOf(r)
		if err != nil {
			return nil, err
		}
		return s.explanation(r.Context(), info.Namespace, info.Name, at)
	case "explanations list":
		return s.explanations(r.Context(), info.Namespace)
	case "pods list":
		return s.sidecars(r.Context(), info.Namespace)
	case "queries create":
		return s.query(r)
	}
	return nil, apierrors.NewMethodNotSupported(explain.Resource(info.Resource), info.Verb)
}

// writeObject writes an object, or an error as a Status.
func writeObject(w http.ResponseWriter, object any) {
	code := http.StatusOK
	if err, failed := object.(error); failed {
		status := metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: err.Error()}
		if api := apierrors.APIStatus(nil); errors.As(err, &api) {
			status = api.Status()
		}
		status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
		code, object = int(status.Code), status
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object) // a caller that has gone needs no answer
}

// instantOf is the instant that the parameter at names: -2m, or a time; without it none.
func (s *Server) instantOf(r *http.Request) (time.Time, error) {
	text, now := r.URL.Query().Get("at"), s.provider.now()
	if text == "" {
		return time.Time{}, nil
	}
	at, err := instant(text, now)
	if err != nil {
		return at, apierrors.NewBadRequest(err.Error())
	}
	if oldest := now.Add(-s.provider.rules.retention); at.Before(oldest) {
		return at, apierrors.NewBadRequest(fmt.Sprintf("at %s is older than what is kept, which is %s (--retention): take a later one", text, s.provider.rules.retention))
	}
	return at, nil
}

// explanationHere is one HPA's as this replica has it, at an instant or now. The error is that it
// is not known.
func (s *Server) explanationHere(ctx context.Context, namespace, name string, at time.Time) (explain.Explanation, error) {
	now := s.provider.now()
	if at.IsZero() {
		at = now
	}
	for _, h := range s.provider.catalog.current.Load().hpas {
		if h.Namespace == namespace && h.Name == name {
			return s.explain(ctx, h, at, now, true), nil
		}
	}
	return explain.Explanation{}, apierrors.NewNotFound(explain.Resource("explanations"), name)
}

// instant reads a time: -2m for before now, or RFC 3339.
func instant(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		if d > 0 {
			return now, fmt.Errorf("at %s is to come: write -%s", text, text)
		}
		return now.Add(d), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	switch {
	case err != nil:
		return now, fmt.Errorf("at %q is neither a duration before now such as -2m nor a time such as %s", text, now.UTC().Format(time.RFC3339))
	case at.After(now):
		return now, fmt.Errorf("at %s is to come", text)
	}
	return at, nil
}

// explanationsHere are those of a namespace, "" of all, as this replica has them.
func (s *Server) explanationsHere(ctx context.Context, namespace string) (explain.List, error) {
	at := s.provider.now()
	list := explain.List{TypeMeta: metav1.TypeMeta{APIVersion: explain.APIVersion, Kind: "ExplanationList"}, Items: []explain.Explanation{}}
	for _, h := range s.provider.catalog.current.Load().hpas {
		if (namespace == "" || h.Namespace == namespace) && len(h.Metrics)+len(h.Unserved)+len(h.problems) > 0 {
			list.Items = append(list.Items, s.explain(ctx, h, at, at, false))
		}
	}
	list.Items = append(list.Items, s.shadow.scaledHere(ctx, namespace, at)...)
	return list, ctx.Err()
}

// sidecarsHere are the pods of a namespace, "" of all, that have reported, and those that should,
// as this replica has them.
func (s *Server) sidecarsHere(namespace string) (explain.Sidecars, error) {
	at := s.provider.now()
	list := explain.Sidecars{TypeMeta: metav1.TypeMeta{APIVersion: explain.APIVersion, Kind: "SidecarList"}, At: at, Items: []explain.Sidecar{}}
	reported := map[string]bool{}
	store := s.options.Store
	for _, r := range store.Reports(namespace, at, time.Minute) {
		if h := s.provider.rules.holder; h != nil {
			if p, known := h.pods.Get(r.Namespace, r.Name); !known || !p.Left.IsZero() {
				continue
			}
		}
		reported[podName(r.PodState)] = true
		list.Items = append(list.Items, s.sidecar(r, at))
	}
	h := s.provider.rules.holder
	if h == nil {
		return list, nil
	}
	if err := h.pods.Synced(); err != nil {
		return list, apierrors.NewServiceUnavailable(err.Error())
	}
	h.pods.Each([]aggregator.Meant{{Namespace: namespace}}, at, func(p *cluster.Pod) {
		if p.Wired && !p.Batch && p.Left.IsZero() && !reported[p.Identity.Namespace+"/"+p.Identity.Name] {
			list.Items = append(list.Items, s.missing(p, at))
		}
	})
	return list, nil
}

// sidecar is what is known of a pod that has reported.
func (s *Server) sidecar(r aggregator.Report, at time.Time) explain.Sidecar {
	told := explain.Sidecar{
		TypeMeta: metav1.TypeMeta{APIVersion: explain.APIVersion, Kind: "Sidecar"}, ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: r.Name},
		Workload: r.Pod.Workload, State: stateOf(r.PodState, at.Add(-time.Minute)), FlushSeconds: r.Flush.Seconds(), ClockOffsetSeconds: r.ClockOffset.Seconds(),
		Series: r.Series, Bytes: r.Bytes, Security: "plaintext", Peer: r.Pod.Peer, Refused: r.RefusedWhy, HPAs: s.countsFor(&r.Pod),
	}
	if h := s.provider.rules.holder; h != nil && told.State == explain.StateSilent && at.Sub(r.Newest) > h.hold {
		told.State = explain.StateMute
	}
	if r.Rivals != nil {
		told.State, told.Refused = explain.StateContested, "from "+r.Rivals.Counts+" and from "+r.Rivals.Other
	}
	if !r.Newest.IsZero() {
		told.LastFlush = &r.Newest
	}
	if r.Proven {
		told.Security = "mTLS"
	}
	if !r.Refused.IsZero() && told.Refused == "" {
		told.Refused = "samples (meshpulse_store_dropped_samples_total tells the reason)"
	}
	return told
}

// missing is a pod that should report and never has.
func (s *Server) missing(p *cluster.Pod, at time.Time) explain.Sidecar {
	h := s.provider.rules.holder
	state := explain.StateUnheard
	switch older := p.Created.Before(h.started); {
	case older && at.Sub(h.started) <= h.hold:
		state = explain.StateAbsent
	case older, at.Sub(p.Created) > h.hold:
		state = explain.StateUnpointed
	}
	return explain.Sidecar{
		TypeMeta: metav1.TypeMeta{APIVersion: explain.APIVersion, Kind: "Sidecar"}, ObjectMeta: metav1.ObjectMeta{Namespace: p.Identity.Namespace, Name: p.Identity.Name},
		Workload: p.Identity.Workload, State: state, HPAs: s.countsFor(&p.Identity),
	}
}

// countsFor are the HPAs whose metrics mean a pod.
func (s *Server) countsFor(p *aggregator.Pod) (names []string) {
	for _, h := range s.provider.catalog.current.Load().hpas {
		means := slices.ContainsFunc(h.offers, func(o *offer) bool {
			return o != nil && o.prepared.query != nil && o.prepared.query.Selects(p) && o.prepared.query.Reads(p.Namespace)
		})
		if means {
			names = append(names, h.Key().String())
		}
	}
	return names
}

// query evaluates an expression that somebody may ask of all series.
func (s *Server) query(r *http.Request) (any, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxQueryBytes+1))
	if err != nil {
		return nil, apierrors.NewBadRequest("the body cannot be read: " + err.Error())
	}
	if len(body) > maxQueryBytes {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("a query has %d bytes at most", maxQueryBytes))
	}
	var q explain.Query
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, apierrors.NewBadRequest("not a Query in JSON: " + err.Error())
	}
	if err := q.Spec.Validate(); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	q.TypeMeta = metav1.TypeMeta{APIVersion: explain.APIVersion, Kind: "Query"}
	if q.Status, err = s.queryStatus(r.Context(), q.Spec); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return q, nil
}

func (s *Server) evaluateQuery(ctx context.Context, spec explain.QuerySpec) (*explain.QueryStatus, error) {
	query, err := s.options.Store.Query(spec.Query)
	if err != nil {
		return nil, err
	}
	defer query.Close()
	status := &explain.QueryStatus{Series: []explain.QuerySeries{}}
	places := map[string]int{} // of the series, by their labels
	end := s.provider.now().Add(-duration(spec.AgoSeconds))
	steps := 0
	if spec.RangeSeconds > 0 {
		steps = int(math.Round(spec.RangeSeconds / spec.StepSeconds))
	}
	for i := steps; i >= 0; i-- {
		at := end.Add(-time.Duration(i) * duration(spec.StepSeconds))
		a, err := query.Eval(ctx, at)
		if err != nil {
			return nil, err
		}
		for _, v := range a.Values {
			key := v.Labels.String()
			place, known := places[key]
			if !known {
				place = len(status.Series)
				places[key] = place
				status.Series = append(status.Series, explain.QuerySeries{Labels: v.Labels.Map()})
			}
			of := &status.Series[place]
			of.Points = append(of.Points, explain.QueryPoint{At: at.UTC(), Value: strconv.FormatFloat(v.V, 'g', -1, 64)})
		}
		status.Reporting, status.Silent = a.Reporting, a.Silent
		if !a.Newest.IsZero() {
			status.Newest = &a.Newest
		}
	}
	slices.SortFunc(status.Series, func(a, b explain.QuerySeries) int {
		return strings.Compare(labels.Set(a.Labels).String(), labels.Set(b.Labels).String())
	})
	return status, nil
}

func duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
