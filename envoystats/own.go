package envoystats

import (
	"hash/maphash"
	"slices"
	"strings"

	"github.com/meshpulse/meshpulse/aggregator"
)

// misreadTags holds what a joined name says of the reporter and the reporter knows better.
const misreadTags = aggregator.MisreadTags

// own is what a sidecar knows of its own pod.
//
// A client of the pod chooses values that end up in its joined names: its Host header, and in the
// header of Istio's metadata exchange all that the tags source_… are made from. Nothing is escaped,
// so they can hold keys, and a reading that is as good as the right one. What says whose series it
// is must not be read from them: the node tells.
type own aggregator.Pod

// value is the value of a label that says something of a request's destination where that is the
// pod itself, "" if it is not known. The node's word always counts for a label that says which
// workload is called; for another one where a key comes twice in the name: only a value can have
// brought it in.
func (o *own) value(label string) (value string, always bool) {
	name, destination := strings.CutPrefix(label, "destination_")
	for _, id := range aggregator.IdentityLabels {
		if destination && id.Name == name {
			return id.Of((*aggregator.Pod)(o)), id.Certain
		}
	}
	return "", false
}

// space tells the keys of pods that know the same of themselves from others': to them the same name
// has the same labels.
func (o *own) space(r *scanRules) uint64 {
	var all [len(aggregator.IdentityLabels)]string
	for i, id := range aggregator.IdentityLabels {
		all[i] = id.Of((*aggregator.Pod)(o))
	}
	return maphash.Comparable(r.ownSeed, all) | 1
}

// correct puts the node's word for what a destination's labels say of itself, joined to the name or
// not: they are the sender's choice as well. twice says that a key came twice in the name.
func (o *own) correct(labels []aggregator.Label, twice bool) []aggregator.Label {
	if o == nil || !slices.Contains(labels, aggregator.Label{Name: "reporter", Value: "destination"}) {
		return labels
	}
	var misread []string
	for i, l := range labels {
		value, always := o.value(l.Name)
		if value == "" || value == l.Value || !always && !twice {
			continue
		}
		misread = append(misread, l.Name, l.Value)
		labels[i].Value = value
	}
	if misread != nil {
		labels = append(labels, aggregator.Label{Name: misreadTags, Value: strings.Join(misread, ".")})
	}
	return labels
}

// identify adds what Prometheus knows of the pod to the labels of a metric of the sidecar's own,
// where they have none of that name.
func (o *own) identify(labels []aggregator.Label) []aggregator.Label {
	if o == nil {
		return labels
	}
	for _, id := range aggregator.IdentityLabels {
		value := id.Of((*aggregator.Pod)(o))
		told := slices.ContainsFunc(labels, func(l aggregator.Label) bool { return l.Name == id.Own })
		if id.Own != "" && value != "" && !told {
			labels = append(labels, aggregator.Label{Name: id.Own, Value: value})
		}
	}
	return labels
}

// repeats says whether a key comes twice.
func (o *keyOrder) repeats(tokens []string) bool {
	seen := make([]bool, len(o.rank))
	for _, token := range tokens {
		rank, ok := o.rank[token]
		if ok && seen[rank] {
			return true
		}
		if ok {
			seen[rank] = true
		}
	}
	return false
}
