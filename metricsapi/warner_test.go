package metricsapi

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// A problem is told while it lasts, at most so many minutes apart, and anew when it comes back. It
// counts once each time that it begins.
func TestAProblemIsToldForAsLongAsItLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMetrics(nil)
		var told []time.Time
		w := newWarner(func(hpas.HPA, hpas.Problem) { told = append(told, time.Now()) }, m)
		h, p := hpaFrom(t, minimalHPA("podinfo")), hpas.Problem{Reason: hpas.ReasonMuteSidecars, Message: "mute"}
		last := func(d time.Duration) {
			for until := time.Now().Add(d); time.Now().Before(until); time.Sleep(15 * time.Second) {
				w.tell(h, p)
				w.end()
			}
		}
		begun := func() float64 { return testutil.ToFloat64(m.events.WithLabelValues(hpas.ReasonMuteSidecars)) }
		last(2 * time.Hour)
		if len(told) != 12 || begun() != 1 {
			t.Errorf("told %d times in two hours, counted %v", len(told), begun())
		}
		for i := 1; i < len(told); i++ {
			if told[i].Sub(told[i-1]) != renewEvery {
				t.Errorf("told again after %s", told[i].Sub(told[i-1]))
			}
		}
		time.Sleep(endsAfter)
		w.end()
		if len(w.told) != 0 {
			t.Error("it is not forgotten after its end")
		}
		last(time.Minute)
		if len(told) != 13 || begun() != 2 {
			t.Errorf("when it comes back it is told %d times, counted %v", len(told)-12, begun())
		}
	})
}

// What the HPA alone shows is told again too, though nobody asks for its metrics.
func TestWhatAnHPAShowsIsToldForAsLongAsItIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMetrics(nil)
		var told atomic.Int64
		c := newCatalog(newTestStore(t), newWarner(func(hpas.HPA, hpas.Problem) { told.Add(1) }, m))
		c.Replace([]hpas.HPA{asks(t, "podinfo", "bad", "sum(")})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.keepTelling(ctx); close(done) }()
		time.Sleep(2*time.Hour + time.Second)
		if n := told.Load(); n != 13 {
			t.Errorf("told %d times in two hours", n)
		}
		c.Replace(nil)
		time.Sleep(time.Hour)
		if n := told.Load(); n != 13 {
			t.Errorf("told %d times once it is gone", n-13)
		}
		cancel()
		<-done
		c.Close()
	})
}
