package aggregator

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// ReportingWorkloads returns the workloads whose pods report at an instant, as namespace/workload
// and sorted, of the namespaces whose pods the query means. Where everywhere is true and there is
// none, it is those of all namespaces. Those that the query does not see are left out. It looks at
// every pod there, so it is for errors.
func (q *Query) ReportingWorkloads(at time.Time, everywhere bool) []string {
	found := map[string]bool{}
	now := q.store.millis(at)
	look := func(tables []*table) {
		for _, t := range tables {
			pod := t.pod.Load()
			if name := pod.Namespace + "/" + pod.Workload; pod.Workload != "" && !found[name] && q.Reads(pod.Namespace) && !t.gone.Load() && t.state(now, time.Minute).Reporting {
				found[name] = true
			}
		}
	}
	for _, m := range q.meant {
		if m.Namespace != "" {
			look(q.store.tables.in(m.Namespace))
		}
	}
	if len(found) == 0 && everywhere {
		look(q.store.tables.all.all())
	}
	return slices.Sorted(maps.Keys(found))
}

// Foreign returns the name of the first of the pods that the cluster does not know and that say
// that they are of those which the query selects: what they send is not counted. It is "" where
// there is none.
func (q *Query) Foreign(at time.Time) (name string) {
	name, _ = q.store.foreign.named.first(q.Selects, q.store.millis(at))
	return name
}

// Reads reports whether the query sees all that the pods of a namespace report.
func (q *Query) Reads(namespace string) bool { return q.reads.namespace(namespace) }

// Refused returns the name of the first of the pods that the query selects as which somebody has
// sent who was refused for what he proves or does not (NoteRefused), and why. Both are "" where
// there is none.
func (q *Query) Refused(at time.Time) (name, why string) {
	return q.store.refused.first(q.Selects, q.store.millis(at))
}

// Proven counts the pods that report at an instant and that the query selects by what they say of
// themselves, and those of them that have proven it with a certificate; unproven are the names of
// the others, sorted, so many at most. It looks at every pod, so it is for people.
func (q *Query) Proven(at time.Time, most int) (proven, reporting int, unproven []string) {
	now := q.store.millis(at)
	tables := q.store.tables.all.all()
	if namespace := q.Namespace(); namespace != "" {
		tables = q.store.tables.in(namespace)
	}
	for _, t := range tables {
		if p := t.pod.Load(); !t.gone.Load() && q.Selects(p) && t.state(now, time.Minute).Reporting {
			if reporting++; t.proof() != ProofNone {
				proven++
			} else {
				unproven = append(unproven, p.Namespace+"/"+p.Name)
			}
		}
	}
	slices.Sort(unproven)
	return proven, reporting, unproven[:min(len(unproven), most)]
}

// Report is what is known of a pod that has reported, for people.
type Report struct {
	PodState
	// Pod is what the sidecar's node says of itself.
	Pod Pod
	// Flush is the interval of its flushes, as observed.
	Flush time.Duration
	// ClockOffset is how much later than by the sidecar's clock its newest flush is dated: what
	// that clock is behind, and the way here.
	ClockOffset time.Duration
	// Series counts the label sets that are kept, Bytes what the pod takes in memory.
	Series int
	Bytes  int64
	// Proven: it has shown with a certificate of the mesh who it is.
	Proven bool
	// RefusedWhy says why a sender that says it is the pod is refused, "" where none is.
	RefusedWhy string
}

// Reports returns the pods of a namespace that have reported, "" of all, in the order of their
// names. window is how far back gaps and refusals count. It takes each pod's mutex for a moment, so
// it is for people.
func (s *Store) Reports(namespace string, at time.Time, window time.Duration) []Report {
	return s.reports(namespace, at, window, func(*Pod) bool { return true })
}

// Reports are those of the pods that the query selects by what they say of themselves.
func (q *Query) Reports(at time.Time) []Report {
	return q.store.reports(q.Namespace(), at, q.reach, func(p *Pod) bool { return q.Selects(p) && q.Reads(p.Namespace) })
}

func (s *store) reports(namespace string, at time.Time, window time.Duration, selects func(*Pod) bool) (found []Report) {
	tables := s.tables.all.all()
	if namespace != "" {
		tables = s.tables.in(namespace)
	}
	for _, t := range tables {
		if p := t.pod.Load(); !t.gone.Load() && selects(p) {
			found = append(found, t.report(s.millis(at), window))
		}
	}
	slices.SortFunc(found, func(a, b Report) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return found
}

func (t *table) report(at int64, window time.Duration) Report {
	r := Report{PodState: t.state(at, window), Pod: *t.pod.Load(), Flush: time.Duration(t.flush.Load()) * time.Millisecond, Proven: t.proof() != ProofNone}
	r.RefusedWhy = t.store.refused.why(podKey{r.Namespace, r.Name}, at)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flushTime != 0 {
		r.ClockOffset = time.Duration(t.flushTime-int64(t.timestamp)) * time.Millisecond
	}
	r.Series, r.Bytes = len(t.byClass), t.bytes()
	return r
}

// why says why who says that he is a pod is refused, "" where nobody is.
func (n *namedPods) why(k podKey, now int64) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if o, ok := n.pods[k]; ok && now-o.at <= caughtFor {
		return o.why
	}
	return ""
}

// Unproven counts by namespace the pods that report at an instant and have not proven with a
// certificate who they are. It looks at every pod.
func (s *Store) Unproven(at time.Time) map[string]int {
	counts, now := map[string]int{}, s.millis(at)
	for _, t := range s.tables.all.all() {
		if !t.gone.Load() && t.proof() == ProofNone && t.state(now, time.Minute).Reporting {
			counts[t.pod.Load().Namespace]++
		}
	}
	return counts
}
