package aggregator

import "slices"

// Whose series a query sees: as is everybody's. Where SetReading was called, a query of an author,
// which is a namespace, sees those that its namespace's pods report, those of requests to its
// namespace, and those of namespaces that it may read. Its selectors select nothing else, so a
// plan, the engine, a surge and what is said of an answer know of nothing else.

// Reading says whose series the queries of a namespace see beside those of their own. It is safe
// for concurrent use.
type Reading interface {
	// MayRead reports whether queries of the author see the series of another namespace. Registered
	// queries see a change for series that come after it, and for all when they are registered
	// anew.
	MayRead(author, namespace string) bool
}

// SetReading limits what queries with an author see. It is called once, before there are any.
func (s *store) SetReading(r Reading) { s.reading.Store(&r) }

// readLimit is what the queries of one author see; nil is everything.
type readLimit struct {
	author  string
	reading Reading
}

// limitOf is nil for nobody in particular: that is no HPA.
func (s *store) limitOf(author string) *readLimit {
	r := s.reading.Load()
	if r == nil || author == "" {
		return nil
	}
	return &readLimit{author, *r}
}

// namespace reports whether all series that pods of a namespace report are seen.
func (l *readLimit) namespace(name string) bool {
	return l == nil || name == l.author || l.reading.MayRead(l.author, name)
}

// series reports whether the series with these labels that a pod reports is seen.
func (l *readLimit) series(set labelSet, p *Pod) bool {
	if l.namespace(p.Namespace) {
		return true
	}
	called := set.get(labelDestinationNamespace)
	return called != "" && called != unknownNamespace && l.namespace(called)
}

const (
	labelDestinationNamespace = "destination_workload_namespace"
	// unknownNamespace is what sidecars say of a peer that has no sidecar. It could be a
	// namespace's name.
	unknownNamespace = "unknown"
)

// sees reports whether there is a series that is seen of such a class.
func (cs *classes) sees(l *readLimit, is func(*class) bool) (found bool) {
	cs.byName.Range(func(_, of any) bool {
		found = slices.ContainsFunc(of.(*list[*class]).all(), func(c *class) bool {
			return is(c) && slices.ContainsFunc(c.columns.all(), func(col *column) bool {
				return col.block.Load() != nil && l.series(c.labels, col.table.pod.Load())
			})
		})
		return !found
	})
	return found
}
