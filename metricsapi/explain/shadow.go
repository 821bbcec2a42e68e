package explain

import (
	"fmt"
	"strconv"
	"time"
)

// Shadow is how a metric compares with what another has of it, over the last comparisons: an hour's
// at one each 15 s. Nothing goes by it.
type Shadow struct {
	// Compared had a value here and there; Agreed of them differ by a tenth at most, and by
	// Decisions of them the HPA would have asked for other replicas.
	Compared  int `json:"compared"`
	Agreed    int `json:"agreed"`
	Decisions int `json:"decisionsDiffered"`
	// OursMissing had a value there alone, TheirsMissing here alone.
	OursMissing   int `json:"oursMissing,omitempty"`
	TheirsMissing int `json:"theirsMissing,omitempty"`
	// Newest is the last one, Largest the one with the largest difference; nil without any.
	Newest  Comparison  `json:"newest"`
	Largest *Comparison `json:"largest,omitempty"`
}

// Comparison is one, at an instant. A value or an age that is left out is missing.
type Comparison struct {
	At              time.Time `json:"at"`
	Here            *float64  `json:"here,omitempty"`
	There           *float64  `json:"there,omitempty"`
	HereAgeSeconds  *float64  `json:"hereAgeSeconds,omitempty"`
	ThereAgeSeconds *float64  `json:"thereAgeSeconds,omitempty"`
	// HereAsks and ThereAsks are the replicas that each would ask for, within the HPA's limits.
	HereAsks  int32 `json:"hereAsks,omitempty"`
	ThereAsks int32 `json:"thereAsks,omitempty"`
	// Reason is why both are likely apart; "" where they agree.
	Reason string `json:"reason,omitempty"`
}

// agreement is how many comparisons agree, "-" without any.
func (s *Shadow) agreement() string {
	if s == nil || s.Compared == 0 {
		return "-"
	}
	return fmt.Sprintf("%d/%d", s.Agreed, s.Compared)
}

// ShadowReport shows what comparisons tell, a line for each metric that has any, in as many columns
// as the width holds (0: all).
func ShadowReport(items []Explanation, width int) []string {
	columns := []Column{
		{"NAMESPACE", 0},
		{"HPA", 0},
		{"METRIC", 3},
		{"AGREE", 0},
		{"OTHER REPLICAS", 0},
		{"ONLY HERE", 6},
		{"ONLY THERE", 6},
		{"HERE", 1},
		{"THERE", 1},
		{"AGES", 5},
		{"REPLICAS", 2},
		{"LARGEST AT", 1},
		{"LIKELY REASON", 0},
	}
	var rows [][]string
	for _, e := range items {
		for i := range e.Metrics {
			if s := e.Metrics[i].Shadow; s != nil {
				rows = append(rows, e.shadowRow(&e.Metrics[i], s))
			}
		}
	}
	if len(rows) == 0 {
		return []string{"Nothing is compared: is --shadow or --shadow-prometheus set, and does an HPA ask for an external metric of meshpulse's?"}
	}
	return Fit(columns, rows, width)
}

// shadowRow is a metric's: the counts, then the comparison with the largest difference.
func (e *Explanation) shadowRow(m *Metric, s *Shadow) []string {
	row := []string{e.Namespace, e.Name, m.Name, s.agreement(), strconv.Itoa(s.Decisions), strconv.Itoa(s.TheirsMissing), strconv.Itoa(s.OursMissing)}
	c := s.Largest
	if c == nil {
		return append(row, "-", "-", "-", "-", "-", "-")
	}
	number := func(v *float64) string {
		if v == nil {
			return "-"
		}
		return strconv.FormatFloat(*v, 'g', 4, 64)
	}
	old := func(v *float64) string {
		if v == nil {
			return "-"
		}
		return seconds(*v)
	}
	reason := c.Reason
	if reason == "" {
		reason = "-"
	}
	return append(row, number(c.Here), number(c.There), old(c.HereAgeSeconds)+" "+old(c.ThereAgeSeconds), fmt.Sprintf("%d %d", c.HereAsks, c.ThereAsks), c.At.UTC().Format(time.TimeOnly), reason)
}
