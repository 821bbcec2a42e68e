package aggregator

import (
	"fmt"
	"time"
)

// contain is deferred by what evaluates the query. A panic sets it aside, and err is set.
func (q *Query) contain(err *error) {
	if q.store.faults.through {
		return
	}
	if p := recover(); p != nil {
		q.setAside(p)
		*err = q.aside()
	}
}

// contain is deferred by what reads rows for the detector, with the mutex held. A panic sets its
// query aside.
func (d *SurgeDetector) contain() {
	if d.query.store.faults.through {
		return
	}
	if p := recover(); p != nil {
		d.begin()
		d.query.setAside(p)
	}
}

// setAside has the query answer errors for a while. It is called while a panic is recovered.
func (q *Query) setAside(panicked any) {
	until := time.Now().Add(faultPause)
	q.asideUntil.Store(&until)
	q.store.fault("query", q.expr, panicked)
}

// aside says why the query does not answer, nil if it does.
func (q *Query) aside() error {
	until := q.asideUntil.Load()
	if until == nil || !time.Now().Before(*until) {
		return nil
	}
	return &QueryError{Expr: q.expr, Reason: fmt.Sprintf("set aside after a fault of meshpulse, which its log tells (please report it); not tried again before %s UTC",
		until.UTC().Format(time.TimeOnly))}
}

// faultPause is how long a query is set aside.
const faultPause = time.Minute
