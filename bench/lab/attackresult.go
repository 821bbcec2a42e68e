package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshpulse/meshpulse/bench/attack"
)

// attackResult is what an assault has cost.
type attackResult struct {
	Order      int // among all
	Name, What string
	// Answers: within a hundredth of the truth; held with a reason that names an attacker; held
	// with another; none; anything else.
	Right, Held, Unnamed, Missing, Wrong int
	Before, During                       float64 // p99 of answers, ms
	Engine                               float64 // the longest answer of Prometheus' engine, s
	Lowest, Highest                      float64 // answers that were not held, of the truth
	Fewest, Most                         int32   // replicas that the HPA wanted
	Above, HeldFor, HeldAfter            float64 // seconds: too high; held; from the attack's end to the last held answer
	Load                                 float64 // average of the machine's last minute, before
	Late                                 float64 // ms by which a victim's own sender missed a flush
	Sent                                 float64 // MiB over the wire, by the attackers
	Closed                               int64   // victims' connections
	Memory, Limit                        float64 // MiB: peak of what is not pages of files, GOMEMLIMIT
	Peak                                 float64 // MiB: of the container; 0: not measured
	Ended                                float64 // seconds from SIGTERM to the end
	Exited                               bool    // it ended by itself
	Failure                              string
	After                                string // the last text of an answer that was not right
}

// patience is by how much the longest answers may lag: three times, and what a busy machine adds to
// any of them.
const patience, hiccup = 3, 50 // times, ms

func (r attackResult) slow() bool { return r.During > max(patience*r.Before, hiccup) }

func (r attackResult) ok() bool {
	return r.Wrong+r.Missing+r.Unnamed == 0 && r.Closed == 0 && !r.Exited && r.Ended <= 5 && !r.slow() && r.Memory <= 1.08*r.Limit && r.Peak <= containerMost>>20 && r.Engine <= 4 && r.Failure == ""
}

// suffer starts a meshpulse, lets its victims be seen, and attacks.
func (a *arena) suffer(ctx context.Context, s assault) (r attackResult) {
	r = attackResult{Order: s.order, Name: s.name, What: s.what, Limit: float64(s.memory) / (1 << 20), Lowest: 1, Highest: 1, Fewest: victims, Most: victims}
	m, err := a.install(ctx, s)
	if err != nil {
		r.Failure = brief(err.Error())
		return r
	}
	ctx, cancel := context.WithCancel(ctx)
	shop := &attack.Sidecars{Target: m.ingest, Series: 5, PerSecond: truth, Authorities: m.authorities}
	fleet := &attack.Sidecars{Target: m.ingest, Series: 100, PerSecond: truth, Authorities: m.authorities}
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() {
		a.nodes.report(ctx, func(namespace string) *attack.Sidecars {
			return map[string]*attack.Sidecars{victimNamespace: shop, fleetNamespace: fleet}[namespace]
		})
	})
	if err := settled(ctx, m); err != nil {
		r.Failure = brief(err.Error())
	}
	var quiet attackResult
	quiet.watch(ctx, m, 4*time.Second)
	r.Before = quiet.During
	closed := shop.Closed()
	r.Load = load1()
	shop.Late()
	attacking, over := context.WithTimeout(ctx, s.lasts)
	type fate struct {
		sent float64
		err  error
	}
	attacked := make(chan fate, 1)
	go func() {
		sent, err := a.attack(attacking, s, m)
		attacked <- fate{sent, err}
	}()
	r.watch(ctx, m, s.lasts)
	over()
	f := <-attacked
	if r.Sent = f.sent; f.err != nil {
		r.Failure = brief(f.err.Error())
	}
	ended := r
	ended.HeldFor = 0
	ended.watch(ctx, m, s.after)
	ended.HeldAfter, ended.HeldFor, ended.During = ended.HeldFor, r.HeldFor, max(ended.During, r.During)
	r = ended
	r.Closed, r.Late = shop.Closed()-closed, shop.Late().Seconds()*1000
	select {
	case <-m.exited:
		r.Exited = true
	default:
	}
	at := time.Now()
	if err := m.stop(); err != nil && !r.Exited {
		r.Failure = brief(err.Error())
	}
	r.Ended = time.Since(at).Seconds()
	if r.Peak, err = m.peak(); err != nil {
		r.Failure = brief(err.Error())
	}
	return r
}

// settled returns when the victims' answers are the truth and not held.
func settled(ctx context.Context, m *subject) error {
	for end := time.Now().Add(2 * time.Minute); ; {
		a, b := m.ask(ctx, "compiled"), m.ask(ctx, "")
		if a.right() && b.right() && a.held+b.held == "" && (m.desired(ctx) == victims || m.folder != "") {
			return nil
		}
		if time.Now().After(end) || !sleep(ctx, 200*time.Millisecond) {
			return fmt.Errorf("the answers were not right before the attack: %v %s %v, %v %s %v", a.value, a.held, a.err, b.value, b.held, b.err)
		}
	}
}

func (s sent) right() bool { return s.err == nil && math.Abs(s.value-truth) <= truth/100 }

// watch asks, ten times a second, and adds what it sees.
func (r *attackResult) watch(ctx context.Context, m *subject, d time.Duration) {
	const interval = 100 * time.Millisecond
	var took []float64
	begin := time.Now()
	for n := 0; time.Since(begin) < d && ctx.Err() == nil; n++ {
		next := begin.Add(time.Duration(n+1) * interval)
		if m.ended() {
			break
		}
		query := "compiled"
		if n%2 == 1 {
			query = ""
		}
		s := m.ask(ctx, query)
		if ctx.Err() != nil {
			break
		}
		took = append(took, s.took.Seconds()*1000)
		r.take(s, time.Since(begin))
		if n%10 == 5 {
			e := m.ask(ctx, "engine")
			r.Engine = max(r.Engine, e.took.Seconds())
			r.take(e, time.Since(begin))
		}
		if n%10 == 0 {
			if want := m.desired(ctx); want > 0 {
				r.Fewest, r.Most = min(r.Fewest, want), max(r.Most, want)
			}
		}
		r.Memory = max(r.Memory, anonymous(m.pid))
		sleep(ctx, time.Until(next))
	}
	slices.Sort(took)
	if len(took) > 0 {
		r.During = took[len(took)*99/100]
	}
}

// take judges one answer.
func (r *attackResult) take(s sent, at time.Duration) {
	switch {
	case s.err != nil && attack.Attacker(s.err.Error()): // standalone nothing can be held: the error names who it is
		r.Held++
		r.HeldFor = at.Seconds()
	case s.err != nil:
		r.Missing++
		r.After = brief(s.err.Error())
	case s.right():
		r.Right++
	case s.held == "":
		r.Wrong++
		r.After = fmt.Sprintf("%.1f in place of %.0f", s.value, truth)
		r.Lowest, r.Highest = min(r.Lowest, s.value/truth), max(r.Highest, s.value/truth)
		if s.value > truth {
			r.Above = at.Seconds()
		}
	default:
		if attack.Attacker(s.held) {
			r.Held++
		} else {
			r.Unnamed++
			r.After = brief(s.held)
		}
		r.HeldFor = at.Seconds()
		if s.value > 1.05*truth { // what keeps the replicas is less
			r.Highest = max(r.Highest, s.value/truth)
			r.Above = at.Seconds()
		}
	}
}

// load1 is the machine's load average of the last minute.
func load1() (load float64) {
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(b), &load)
	}
	return load
}

// anonymous is the memory of a process that is not pages of files, in MiB; 0 when it has ended.
func anonymous(pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "RssAnon: %f kB", &kib); n == 1 {
			return kib / 1024
		}
	}
	return 0
}
