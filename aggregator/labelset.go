package aggregator

import (
	"slices"
	"strings"
	"unique"
)

// labelSet is the labels of a series without its name and without the pod's: sorted, without empty
// values, shared by all metrics and pods that have the same. 16 bytes a label; labels.Labels of the
// same would be about 1 KB.
type labelSet []internedLabel

type internedLabel struct{ name, value unique.Handle[string] }

// get returns the label's value, "" if it is not there: to PromQL the two are the same.
func (s labelSet) get(name string) string {
	for _, l := range s {
		if l.name.Value() == name {
			return l.value.Value()
		}
	}
	return ""
}

func newLabelSet(in []Label) labelSet {
	s := make(labelSet, 0, len(in))
	for _, l := range in {
		if l.Value == "" {
			continue
		}
		name := l.Name
		if name == labelNamespace || name == labelPod { // the reporting pod's: as Prometheus does without honor_labels
			for slices.ContainsFunc(in, func(o Label) bool { return o.Name == name }) {
				name = "exported_" + name
			}
		}
		s = append(s, internedLabel{unique.Make(name), unique.Make(l.Value)})
	}
	slices.SortFunc(s, func(a, b internedLabel) int { return strings.Compare(a.name.Value(), b.name.Value()) })
	return s
}

// Labels that every series gets from the reporting sidecar's node. A metric's own label of such a
// name is called exported_….
const (
	labelNamespace = "namespace"
	labelPod       = "pod"
)

// Istio's label for the end of a call that reports.
const labelReporter = "reporter"
