package aggregator

import (
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
