package metricsapi

import (
	"strings"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// Values of Options.QueryNamespaces.
const (
	queryNamespacesAll = "all"
	queryNamespacesOwn = "own"
)

// reading says whose series the queries of a namespace read beside its own.
type reading interface {
	aggregator.Reading
	// Changes is how often that has changed so far.
	Changes(author string) uint64
}

// ownOnly lets nobody read what is another's.
type ownOnly struct{}

func (ownOnly) MayRead(string, string) bool { return false }
func (ownOnly) Changes(string) uint64       { return 0 }

// limit has the store's queries read no more than they may. From then on that cannot be lifted.
func (c *catalog) limit(r reading) {
	c.reading = r
	c.store.SetReading(r)
}

// changes is how often what a namespace's queries read has changed so far.
func (c *catalog) changes(namespace string) uint64 {
	if c.reading == nil {
		return 0
	}
	return c.reading.Changes(namespace)
}

// unread are the namespaces that an expression names and that queries of the namespace do not read.
func (c *catalog) unread(p *prepared, namespace string) []string {
	if c.reading == nil {
		return nil
	}
	return p.Unread(func(of string) bool { return of == namespace || c.reading.MayRead(namespace, of) })
}

// notRead is what an author should know who names namespaces that its queries do not read.
func notRead(o *offer, namespaces []string) hpas.Problem {
	return hpas.Problemf(hpas.ReasonNotRead, "metric %s names namespace %s, of whose series queries of namespace %s see the calls between the two alone (--query-namespaces=own). "+
		"Its owner can let them see all: kubectl annotate namespace %s %s=%s", o, strings.Join(namespaces, ", "), o.namespace, namespaces[0], cluster.ReadableBy, o.namespace)
}

// readsBeyond is what an author should know whose query sees another namespace's series.
func readsBeyond(o *offer, namespace string) hpas.Problem {
	return hpas.Problemf(hpas.ReasonReadsBeyond, "metric %s reads series of namespace %s too. Where they are not meant, demand destination_workload_namespace=%q in each selector. "+
		"Where they are, and before meshpulse is started with --query-namespaces=own: kubectl annotate namespace %s %s=%s", o, namespace, o.namespace, namespace, cluster.ReadableBy, o.namespace)
}

// firstBeyond is the first namespace that was found: one event tells enough, and not another one as
// pods come and go.
func (p *prepared) firstBeyond(found string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.beyond == "" {
		p.beyond = found
	}
	return p.beyond
}
