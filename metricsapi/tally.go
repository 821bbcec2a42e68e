package metricsapi

import (
	"fmt"
	"strings"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// tally is what is known of the pods of one workload that an answer means.
type tally struct {
	cluster.Workload
	// heard: one of them, or that was one of them, has reported within the last hour, and is the
	// pod that it was.
	heard bool
	// expected pods should report. Of reporting ones the newest row is at most two flushes old.
	expected, reporting int
	// young pods are reporting ones that have begun within the window, by name.
	young []string
	// mute pods have not reported for longer than the holder waits, nor within the window, or all
	// that is asked for was refused for as long: bare ones, by name. They are counted as the mean
	// of the known pods of the workload.
	mute int
	bare []string
	// unheard pods are younger than our start and have not reported since, for longer than the
	// holder waits: either they serve nobody, or their sidecar does not reach us. They may keep
	// replicas, as the mean of those of the workload that report, and never add any.
	unheard int
	// lasting pods have told all of the window and are to stay.
	lasting int
	// departed is a pod that has left within the window and had told all, "" if there is none.
	departed string
}

// known is how many pods make what is seen of the workload.
func (t *tally) known() int {
	return t.reporting - len(t.unlike())
}

// unlike are the pods that make no mean: the young ones, unless all are.
func (t *tally) unlike() []string {
	if t.reporting > len(t.young) {
		return t.young
	}
	return nil
}

// flaws counts why an answer is incomplete, with the name of one pod each.
type flaws struct {
	counts   [8]int
	examples [8]string
}

const (
	flawSilent  = iota // was reporting
	flawAbsent         // has not come back since our start
	flawUnheard        // is younger, and has not reported yet
	flawPartial        // its rows do not tell all of the window
	flawRefused        // samples were refused
	flawLeft           // has left, and not told all that it served
	flawRival          // two senders report as it
	flawUnsent         // does not send a metric of its own
)

var flawTexts = [...]string{
	flawSilent:  "silent",
	flawAbsent:  "not back since the start of meshpulse",
	flawUnheard: "not heard of since it began",
	flawPartial: "not known over the whole window",
	flawRefused: "with refused samples",
	flawLeft:    "deleted, and not all is known that it served or left to others",
	flawRival:   "that two senders report as",
	flawUnsent:  "without the annotation " + hpas.InclusionAnnotation + " that has it sent",
}

func (f *flaws) add(kind int, name string) {
	if f.counts[kind]++; f.examples[kind] == "" || name < f.examples[kind] {
		f.examples[kind] = name
	}
}

func (f *flaws) String() string {
	var parts []string
	for kind, n := range f.counts {
		switch {
		case n == 1:
			parts = append(parts, fmt.Sprintf("1 sidecar %s (%s)", flawTexts[kind], f.examples[kind]))
		case n > 1:
			parts = append(parts, fmt.Sprintf("%d sidecars %s (%s, …)", n, flawTexts[kind], f.examples[kind]))
		}
	}
	return strings.Join(parts, ", ")
}
