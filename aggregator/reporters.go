package aggregator

import (
	"maps"
	"slices"
	"time"
)

// ReportingWorkloads returns the workloads whose pods report at an instant, as namespace/workload and sorted, of the namespaces whose pods the query
// means. Where everywhere is true and there is none, it is those of all namespaces. Those that the query does not see are left out. It looks at
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

// Foreign returns the name of the first of the pods that the cluster does not know and that say that they are of those which the query
// selects: what they send is not counted. It is "" where there is none.
func (q *Query) Foreign(at time.Time) (name string) {
	f, now := &q.store.foreign, q.store.millis(at)
	f.mu.Lock()
	defer f.mu.Unlock()
	first := now + 1
	for k, o := range f.pods {
		if now-o.at <= caughtFor && o.since < first && q.Selects(o.pod) {
			name, first = k.namespace+"/"+k.name, o.since
		}
	}
	return name
}

// Reads reports whether the query sees all that the pods of a namespace report.
func (q *Query) Reads(namespace string) bool { return q.reads.namespace(namespace) }
