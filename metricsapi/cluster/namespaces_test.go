package cluster

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// Who may read a namespace is what its annotation says, and only those are told of a change whom it
// concerns.
func TestWhoMayReadANamespace(t *testing.T) {
	var log bytes.Buffer
	told := 0
	n, err := NewNamespaces(fake.NewClientset(), func() { told++ }, nil, slog.New(slog.NewTextHandler(&log, nil)), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	let := func(by string) {
		kept, err := keepAnnotations(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "b", Labels: map[string]string{"x": "y"}, Annotations: map[string]string{ReadableBy: by, "other": "z"}}})
		if of := kept.(*corev1.Namespace); err != nil || len(of.Labels) > 0 || len(of.Annotations) != 1 {
			t.Fatalf("%v is kept, %v", kept, err)
		}
		n.take(kept)
	}
	for _, step := range []struct {
		by                string
		readers, others   string
		changed           string // of whom what they may read has changed
		told, complaining int
	}{
		{by: "", others: "a c", changed: ""},
		{by: "a", readers: "a", others: "c b-", changed: "a", told: 1},
		{by: " a , c ,a,", readers: "a c", others: "d", changed: "c", told: 1},
		{by: "a,c", readers: "a c", others: "d"},
		{by: "c", readers: "c", others: "a", changed: "a", told: 1},
		{by: "*", readers: "a c d", changed: "a c d", told: 1},
		{by: "c,*", readers: "a c d", changed: "c", told: 1},
		{by: "Not A Name,../x,c", readers: "c", others: "a d", changed: "a c d", told: 1, complaining: 2},
		{by: "", others: "a c d", changed: "c", told: 1},
	} {
		before, complained := map[string]uint64{}, strings.Count(log.String(), "level=WARN")
		for _, who := range []string{"a", "c", "d"} {
			before[who] = n.Changes(who)
		}
		was := told
		let(step.by)
		for _, who := range strings.Fields(step.readers) {
			if !n.MayRead(who, "b") || n.MayRead("b", who) || n.MayRead(who, "e") {
				t.Errorf("readable by %q: %s may read b: %v, e: %v, and b may read it: %v", step.by, who, n.MayRead(who, "b"), n.MayRead(who, "e"), n.MayRead("b", who))
			}
		}
		for _, who := range strings.Fields(step.others) {
			if n.MayRead(who, "b") {
				t.Errorf("readable by %q: %s may", step.by, who)
			}
		}
		for who, changes := range before {
			// Who sees another list by a star may be told of a change that is none.
			if wanted := strings.Contains(step.changed, who); wanted && n.Changes(who) == changes {
				t.Errorf("readable by %q: %s is not told", step.by, who)
			} else if !wanted && n.Changes(who) != changes {
				t.Errorf("readable by %q: %s is told of a change that is none of its", step.by, who)
			}
		}
		if told-was != step.told {
			t.Errorf("readable by %q: a change is told %d times, want %d", step.by, told-was, step.told)
		}
		if got := strings.Count(log.String(), "level=WARN") - complained; got != step.complaining {
			t.Errorf("readable by %q: %d lines of the log, want %d", step.by, got, step.complaining)
		}
	}
}
