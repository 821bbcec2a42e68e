package explain

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Query is an expression to be evaluated once, and what came of it.
type Query struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              QuerySpec    `json:"spec"`
	Status            *QueryStatus `json:"status,omitempty"`
}

// QuerySpec is what is asked: at one instant, or at instants StepSeconds apart over RangeSeconds
// that end there.
type QuerySpec struct {
	Query string `json:"query"`
	// AgoSeconds is how long before now the instant is.
	AgoSeconds   float64 `json:"agoSeconds,omitempty"`
	RangeSeconds float64 `json:"rangeSeconds,omitempty"`
	StepSeconds  float64 `json:"stepSeconds,omitempty"`
}

// MaxSteps bounds the instants of a range.
const MaxSteps = 1000

// QueryStatus is what came of it.
type QueryStatus struct {
	// Series are the result's; a scalar is one without labels.
	Series []QuerySeries `json:"series"`
	// Newest is the newest sample that went into the newest instant.
	Newest *time.Time `json:"newest,omitempty"`
	// Reporting of Reporting+Silent pods that could have the series have reported lately.
	Reporting int `json:"reporting"`
	Silent    int `json:"silent"`
}

// QuerySeries is one series of a result.
type QuerySeries struct {
	Labels map[string]string `json:"labels"`
	Points []QueryPoint      `json:"points"`
}

// QueryPoint is a value at an instant. Value is a text, since it may be NaN or infinite.
type QueryPoint struct {
	At    time.Time `json:"at"`
	Value string    `json:"value"`
}

// Validate says what does not fit together.
func (q QuerySpec) Validate() error {
	switch {
	case strings.TrimSpace(q.Query) == "":
		return fmt.Errorf("spec.query is empty: give a PromQL expression")
	case !(q.AgoSeconds >= 0) || !(q.RangeSeconds >= 0) || !(q.StepSeconds >= 0):
		return fmt.Errorf("spec: times are not below 0")
	case q.RangeSeconds > 0 && q.StepSeconds < 0.1:
		return fmt.Errorf("spec.stepSeconds %g: a range needs a step of 0.1 or more", q.StepSeconds)
	case q.RangeSeconds > 0 && q.RangeSeconds/q.StepSeconds > MaxSteps:
		return fmt.Errorf("spec: a range of %gs in steps of %gs has more than %d instants: take a longer step", q.RangeSeconds, q.StepSeconds, MaxSteps)
	}
	return nil
}

// Table shows a series a line, with its newest value, in so many columns (0: all).
func (s *QueryStatus) Table(width int) []string {
	var rows [][]string
	for _, series := range s.Series {
		value := "-"
		if n := len(series.Points); n > 0 {
			value = series.Points[n-1].Value
		}
		rows = append(rows, []string{labelsText(series.Labels), value})
	}
	return Fit([]Column{{"SERIES", 0}, {"VALUE", 0}}, rows, width)
}

// labelsText is a label set as PromQL has it.
func labelsText(labels map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, name+"="+strconv.Quote(labels[name]))
	}
	return "{" + strings.Join(parts, ", ") + "}"
}
