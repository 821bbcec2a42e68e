package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Sidecar is what is known of a pod that reports, or that should and does not.
type Sidecar struct {
	metav1.TypeMeta `json:",inline"`
	// The pod's name and namespace.
	metav1.ObjectMeta `json:"metadata"`
	Workload          string `json:"workload,omitempty"`
	State             State  `json:"state"`
	// LastFlush is the time of its newest flush, FlushSeconds how often they come.
	LastFlush    *time.Time `json:"lastFlush,omitempty"`
	FlushSeconds float64    `json:"flushSeconds,omitempty"`
	// ClockOffsetSeconds is how much later than by its own clock its newest flush came: what that
	// clock is behind, and the way here.
	ClockOffsetSeconds float64 `json:"clockOffsetSeconds"`
	// Series counts its label sets, Bytes what it takes in memory.
	Series int   `json:"series"`
	Bytes  int64 `json:"bytes"`
	// Security is mTLS where its stream has proven with a certificate who it is, else plaintext.
	Security string `json:"security,omitempty"`
	// Peer is the SPIFFE ID that was proven.
	Peer string `json:"peer,omitempty"`
	// Refused says what of it is refused, and why.
	Refused string `json:"refused,omitempty"`
	// HPAs are those it counts for, as namespace/name.
	HPAs []string `json:"hpas,omitempty"`
}

// Sidecars are many.
type Sidecars struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	// At is when they were looked at.
	At    time.Time `json:"at"`
	Items []Sidecar `json:"items"`
}

// Table shows them, the doubtful ones first, in as many columns as the width holds (0: all).
func (s *Sidecars) Table(namespaces bool, width int) []string {
	columns := []Column{
		{"NAMESPACE", 0}, {"POD", 0}, {"STATE", 0}, {"FLUSH", 0}, {"EVERY", 4}, {"CLOCK", 6}, {"LABEL SETS", 3}, {"BYTES", 7}, {"SECURITY", 2}, {"HPAS", 5}, {"REFUSED", 1},
	}
	states := States()
	var rows [][]string
	for _, p := range slices.SortedFunc(slices.Values(s.Items), func(a, b Sidecar) int {
		return cmp.Or(slices.Index(states, a.State)-slices.Index(states, b.State), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	}) {
		last, every, clock, security := "never", "-", "-", p.Security
		if p.LastFlush != nil {
			last, every, clock = age(s.At.Sub(*p.LastFlush))+" ago", seconds(p.FlushSeconds), fmt.Sprintf("%+.2fs", p.ClockOffsetSeconds)
		}
		if security == "" {
			security = "-"
		}
		row := []string{p.Namespace, p.Name, string(p.State), last, every, clock, fmt.Sprint(p.Series), fmt.Sprint(p.Bytes), security, strings.Join(p.HPAs, ","), p.Refused}
		rows = append(rows, row)
	}
	if !namespaces {
		columns = columns[1:]
		for i := range rows {
			rows[i] = rows[i][1:]
		}
	}
	return Fit(columns, rows, width)
}
