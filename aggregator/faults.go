package aggregator

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// A fault is a panic: a defect of ours. It must not end the process, which serves everybody else,
// nor may anything be answered from what it has left half done. So it is contained where the part
// begins that it belongs to:
//
//   - A table is set aside: its rows are not read any more, its pod counts as silent, and at the
//     pod's next flush another table takes its place, as after a pause.
//   - A query is set aside: for faultPause it answers an error, then it is tried again.
//
// Each is counted, and logged once for each place in the code: what panics does it again at every
// flush.
type faults struct {
	log *slog.Logger
	// through lets panics go on, for tests that look for them.
	through bool

	mu   sync.Mutex
	told map[string]bool // by place in the code
}

// ErrSetAside is what a message is dropped with whose taking panicked: the pod's table was set
// aside.
var ErrSetAside = errors.New("the pod's table was set aside after a fault of meshpulse")

// faultParts are the values of the part label of meshpulse_faults_total, of all packages.
var faultParts = []string{"act", "events", "hpas", "namespaces", "pods", "query", "replicas", "scaledobjects", "store", "stream", "table"}

// Contain does a part of what goes on in the background. A panic in it is logged (once for each
// place in the code) and counted under the part's name, which is one of a few; Contain returns
// false then. subject says whose part it was.
func (s *store) Contain(part, subject string, do func()) (ok bool) {
	defer func() {
		if s.faults.through {
			return
		}
		if p := recover(); p != nil {
			s.fault(part, subject, p)
		}
	}()
	do()
	return true
}

// fault counts and logs a panic. It is called while that is recovered.
func (s *store) fault(part, subject string, panicked any) {
	s.metrics.faults.WithLabelValues(part).Inc()
	at := faultPlace()
	s.faults.mu.Lock()
	again := s.faults.told[at]
	if s.faults.told == nil {
		s.faults.told = map[string]bool{}
	}
	s.faults.told[at] = true
	s.faults.mu.Unlock()
	if !again {
		s.faults.log.Error("a fault of meshpulse was contained; please report it", "part", part, "subject", subject, "at", at,
			"panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
	}
}

// faultPlace is the line that panicked.
func faultPlace() string {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(0, pcs[:])])
	for panicked := false; ; {
		f, more := frames.Next()
		switch own := !strings.HasPrefix(f.Function, "runtime."); {
		case f.Function == "runtime.gopanic":
			panicked = true
		case panicked && own, !more:
			return fmt.Sprintf("%s:%d", f.Function, f.Line)
		}
	}
}

// contain is deferred by what writes to the table, with the mutex held. A panic sets the table
// aside; err, if not nil, is set then, and so many samples are counted as dropped.
func (t *table) contain(err *error, samples int) {
	if t.store.faults.through {
		return
	}
	p := recover()
	if p == nil {
		return
	}
	t.setAside()
	pod := t.pod.Load()
	t.store.fault("table", pod.Namespace+"/"+pod.Name, p)
	if err != nil {
		*err = ErrSetAside
		t.store.metrics.drop(ErrSetAside, samples)
	}
}

// try does something to the table, with the mutex held. A panic sets the table aside.
func (t *table) try(do func()) {
	defer t.contain(nil, 0)
	do()
}

// setAside ends the reading of the table: to readers all of its rows are claimed, whatever they
// hold. What the pod has told ends with the newest row that was closed.
func (t *table) setAside() {
	g := t.gen.Load()
	newest, _ := g.Newest()
	if closed := t.closed.Load(); closed > 0 {
		newest = g.Time(ring.Row(closed))
	}
	t.aside.Store(&newest)
	t.openFlush = openFlush{}
	others := []*ring.Rows{g}
	for _, c := range t.columns {
		if c == nil { // while one was taken out
			continue
		}
		if b := c.block.Load(); b != nil { // of a generation that the table does not have yet
			others = append(others, b.Rows())
		}
	}
	t.ring.End(others...)
}

// discard frees a table that was set aside, with the mutex held: its pod's next one knows nothing
// of the past but when it ended.
func (t *table) discard() {
	t.try(t.free)
	t.store.tables.remove(t)
}
