package relay_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats/fleet"
	"github.com/meshpulse/meshpulse/envoystats/relay"
)

// patience is how long something is waited for that happens: as long as a loaded machine may take.
const patience = 30 * time.Second

// taken is a sink that remembers what was relayed.
type taken struct {
	mu      sync.Mutex
	pods    []aggregator.Pod
	calls   []call
	more    func(message []byte) bool // nil: more is to come of each stream
	no      bool                      // to the pod that is called refused
	came    chan struct{}
	forgets bool // what comes
}

type call struct {
	pod     string
	message string // "" is the end
	arrival time.Time
}

func newTaken() *taken { return &taken{came: make(chan struct{}, 1000)} }

func (s *taken) Relayed(p aggregator.Pod) (relay.Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.no && p.Name == "refused" {
		return nil, fmt.Errorf("nobody takes %s", p.Name)
	}
	s.pods = append(s.pods, p)
	return takenStream{s, p.Name}, nil
}

func (s *taken) none(no bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.no = no
}

func (*taken) Streams() int { return 0 }

type takenStream struct {
	*taken
	pod string
}

func (s takenStream) Message(arrival time.Time, message []byte) bool {
	if s.forgets {
		s.came <- struct{}{}
		return true
	}
	s.note(call{s.pod, string(message), arrival})
	return s.more == nil || s.more(message)
}

func (s takenStream) End() { s.note(call{pod: s.pod}) }

func (s *taken) note(c call) {
	s.mu.Lock()
	s.calls = append(s.calls, c)
	s.mu.Unlock()
	s.came <- struct{}{}
}

// wait returns the first n calls.
func (s *taken) wait(t *testing.T, n int) []call {
	t.Helper()
	for {
		s.mu.Lock()
		calls := s.calls
		s.mu.Unlock()
		if len(calls) >= n {
			return calls
		}
		select {
		case <-s.came:
		case <-time.After(patience):
			t.Fatalf("%d of %d messages came: %v", len(calls), n, calls)
		}
	}
}

// replica is one of a test's.
type replica struct {
	*relay.Replicas
	sink     *taken
	address  string
	registry *prometheus.Registry
}

// begin starts replicas that know each other by their addresses.
func begin(t testing.TB, n int, change func(i int, c *relay.Config)) []*replica {
	t.Helper()
	listeners, addresses := make([]net.Listener, n), make([]string, n)
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners[i], addresses[i] = l, l.Addr().String()
	}
	replicas := make([]*replica, n)
	for i, l := range listeners {
		c := relay.Config{Self: fleet.Member{Name: addresses[i], Address: addresses[i]}, Static: addresses, Logger: slog.New(slog.DiscardHandler)}
		if change != nil {
			change(i, &c)
		}
		replicas[i] = start(t, c, l)
	}
	return replicas
}

// start starts one that listens; l nil: one that does not.
func start(t testing.TB, c relay.Config, l net.Listener) *replica {
	t.Helper()
	r := &replica{sink: newTaken(), address: c.Self.Address, registry: prometheus.NewRegistry()}
	c.Registerer = r.registry
	var err error
	if r.Replicas, err = relay.New(c); err != nil {
		t.Fatal(err)
	}
	r.Relay(r.sink)
	ctx, cancel := context.WithCancel(context.Background())
	var ran sync.WaitGroup
	ran.Go(func() { r.Run(ctx) })
	if l != nil {
		ran.Go(func() { _ = r.Serve(l) })
	}
	t.Cleanup(func() {
		cancel()
		gone, cut := context.WithCancel(context.Background())
		cut()
		r.Shutdown(gone)
		ran.Wait()
	})
	return r
}

// until waits for something that is not told of.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func (r *replica) metric(name string) float64 {
	families, err := r.registry.Gather()
	if err != nil {
		return -1
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

func TestAFlushReachesWhoeverKeepsIt(t *testing.T) {
	all := begin(t, 2, nil)
	pod := fullPod()
	s := all[0].Sender(&pod)
	if !s.Keeps() {
		t.Error("one of two replicas does not keep everything")
	}
	big := bytes.Repeat([]byte("istiocustom.istio_requests_total "), 5000)
	arrival := time.Now().Add(-time.Second)
	s.Send(arrival, []byte("first"))
	s.Send(arrival, big)
	s.End()
	calls := all[1].sink.wait(t, 3)
	if calls[0].message != "first" || calls[1].message != string(big) || calls[2].message != "" {
		t.Errorf("relayed: %.400s", fmt.Sprint(calls))
	}
	if got := all[1].sink.pods; len(got) != 1 || got[0] != pod {
		t.Errorf("as of %+v", got)
	}
	for _, c := range calls[:2] { // it cannot have come before, and is as much later as it was on its way
		if c.arrival.Before(arrival.Add(-time.Millisecond)) || c.arrival.After(time.Now().Add(-time.Second+time.Millisecond)) {
			t.Errorf("a flush of %s came at %s", arrival, c.arrival)
		}
	}
	if n := all[0].metric("meshpulse_relay_sent_bytes_total"); n > 10_000 {
		t.Errorf("a message of %d bytes that repeats itself took %g", len(big), n)
	}
}

func TestMessagesOfAStreamStayInOrder(t *testing.T) {
	all := begin(t, 2, nil)
	const pods, messages = 9, 20
	var senders []*relay.Sender
	for i := range pods {
		senders = append(senders, all[0].Sender(&aggregator.Pod{Namespace: "shop", Name: fmt.Sprintf("cart-%d", i)}))
	}
	for m := range messages {
		for _, s := range senders {
			s.Send(time.Now(), fmt.Appendf(nil, "%d", m))
		}
	}
	next := map[string]int{}
	for _, c := range all[1].sink.wait(t, pods*messages) {
		if c.message != fmt.Sprint(next[c.pod]) {
			t.Fatalf("%s: message %s follows on %d", c.pod, c.message, next[c.pod]-1)
		}
		next[c.pod]++
	}
}

// What a replica does not read is dropped once the queue is full, and nobody waits for it.
func TestAReplicaThatIsNotThereIsNotWaitedFor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never reads
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	r := start(t, relay.Config{
		Self: fleet.Member{Name: "127.0.0.1:1", Address: "127.0.0.1:1"}, Static: []string{l.Addr().String()}, QueueBytes: 10_000,
	}, nil)
	s := r.Sender(&aggregator.Pod{Namespace: "shop", Name: "cart-0"})
	message := make([]byte, 4000) // compresses to almost nothing: what counts is that there are many
	for range 1000 {
		s.Send(time.Now(), message)
	}
	if dropped := r.metric("meshpulse_relay_dropped_frames_total"); dropped < 500 || dropped >= 1000 {
		t.Errorf("%g of 1000 frames were dropped", dropped)
	}
	if queued := r.metric("meshpulse_relay_queued_bytes"); queued <= 0 || queued > 10_000 {
		t.Errorf("%g bytes wait, and 10000 may", queued)
	}
}

// What waits for a replica that is away for hours is of no use to it, and does it no harm.
func TestAReplicaThatWasAwayForHoursIsRelayedTo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var later atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	own := fleet.Member{Name: "127.0.0.1:1", Address: "127.0.0.1:1"}
	r := start(t, relay.Config{Self: own, Static: []string{l.Addr().String()}, Now: now, Logger: slog.New(slog.DiscardHandler)}, nil)
	var senders []*relay.Sender
	for i := range 5 { // the last in the lane of the first
		senders = append(senders, r.Sender(&aggregator.Pod{Namespace: "shop", Name: fmt.Sprintf("cart-%d", i)}))
	}
	senders[0].Send(now(), []byte("old"))
	senders[0].End()
	later.Store((2 * time.Hour).Nanoseconds())
	senders[4].Send(now(), []byte("new"))
	back := start(t, relay.Config{Self: fleet.Member{Name: l.Addr().String(), Address: l.Addr().String()}, Logger: slog.New(slog.DiscardHandler)}, l)
	if calls := back.sink.wait(t, 1); calls[0].message != "new" {
		t.Errorf("taken: %v", calls)
	}
	if refused := back.metric("meshpulse_relay_refused_frames_total"); refused != 0 {
		t.Errorf("%g frames were refused", refused)
	}
}

// A sidecar that one replica refuses, and the one that it reports to does not, knows nothing of it:
// it does not connect anew, and has to be taken once what it was refused for is over.
func TestARefusedStreamIsAskedForAgainAfterAFlush(t *testing.T) {
	var later atomic.Int64
	all := begin(t, 2, func(i int, c *relay.Config) {
		if i == 1 {
			c.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
		}
	})
	all[1].sink.more = func(m []byte) bool { return string(m) != "last" }
	refused := all[0].Sender(&aggregator.Pod{Namespace: "shop", Name: "refused"})
	ended := all[0].Sender(&aggregator.Pod{Namespace: "shop", Name: "ended"})
	send := func(messages ...string) {
		for _, m := range messages {
			refused.Send(time.Now(), []byte(m))
			ended.Send(time.Now(), []byte(m))
		}
	}
	all[1].sink.none(true)
	send("first", "last", "late")
	until(t, "three of one and one of the other are refused", func() bool { return all[1].metric("meshpulse_relay_refused_frames_total") == 4 })
	later.Store(time.Minute.Nanoseconds())
	all[1].sink.none(false)
	send("again")
	var of, others []string
	for _, c := range all[1].sink.wait(t, 5) {
		if c.pod == "ended" {
			of = append(of, c.message)
		} else {
			others = append(others, c.message)
		}
	}
	if got := fmt.Sprint(of, others); got != "[first last  again] [again]" {
		t.Errorf("taken: %s", got)
	}
}

func TestWhatWaitsIsSentBeforeTheEnd(t *testing.T) {
	all := begin(t, 2, nil)
	until(t, "one hears the other", func() bool { return all[1].Silent(all[0].address) < patience })
	s := all[0].Sender(&aggregator.Pod{Namespace: "shop", Name: "cart-0"})
	for i := range 200 {
		s.Send(time.Now(), fmt.Appendf(nil, "%d", i))
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	all[0].Shutdown(ctx)
	calls := all[1].sink.wait(t, 200)
	if last := calls[199].message; last != "199" {
		t.Errorf("the last message is %q", last)
	}
	until(t, "it is known to have ended", func() bool { return all[1].Silent(all[0].address) > time.Hour })
}

func TestAReplicaAnswersAnother(t *testing.T) {
	all := begin(t, 2, nil)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	until(t, "connected", func() bool { return all[0].Silent(all[1].address) < patience })
	if _, err := all[0].Ask(ctx, all[1].address, []byte("how many")); err == nil {
		t.Error("a replica that answers nothing yet has answered")
	}
	all[1].Answer(func(_ context.Context, request []byte) []byte { return append(request, ": 7"...) })
	got, err := all[0].Ask(ctx, all[1].address, []byte("how many"))
	if err != nil || string(got) != "how many: 7" {
		t.Errorf("answered %q, %v", got, err)
	}
	if _, err := all[0].Ask(ctx, "nobody", nil); err == nil {
		t.Error("nobody has answered")
	}
	// The pods of a large cluster are shown at once.
	const large = 9 << 20
	all[1].Answer(func(context.Context, []byte) []byte { return make([]byte, large) })
	if got, err := all[0].Ask(ctx, all[1].address, []byte("pods")); err != nil || len(got) != large {
		t.Errorf("answered %d bytes, %v", len(got), err)
	}
}

func TestReplicasThatBeginTogetherAreAllActive(t *testing.T) {
	for _, r := range begin(t, 3, nil) {
		until(t, "three are active", func() bool {
			active := 0
			for _, m := range r.Members() {
				if m.State == fleet.Active {
					active++
				}
			}
			return active == 3
		})
		if len(r.Owners("shop")) != 2 || !r.Several() {
			t.Errorf("%v own shop of %v", r.Owners("shop"), r.Members())
		}
	}
}

// One that comes later is not asked, and gets what it will own.
func TestAReplicaThatComesLaterJoins(t *testing.T) {
	listeners := make([]net.Listener, 2)
	var addresses []string
	for i := range listeners {
		var err error
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, listeners[i].Addr().String())
	}
	config := func(i int) relay.Config {
		return relay.Config{Self: fleet.Member{Name: addresses[i], Address: addresses[i]}, Static: addresses, Logger: slog.New(slog.DiscardHandler)}
	}
	old := config(0)
	old.Since = time.Now().Add(-time.Hour)
	first := start(t, old, listeners[0])
	until(t, "the first is active by itself", func() bool { return first.Cold() == nil && len(first.Owners("shop")) == 1 })
	second := start(t, config(1), listeners[1])
	until(t, "the second knows the first", func() bool { return fmt.Sprint(second.Owners("shop")) == fmt.Sprint([]string{first.address}) })
	if second.Cold() == nil {
		t.Error("a replica is asked that has no history beside one that has")
	}
	if first.Leads("shop") == second.Leads("shop") {
		t.Error("both lead, or none")
	}
	s := first.Sender(&aggregator.Pod{Namespace: "shop", Name: "cart-0"})
	s.Send(time.Now(), []byte("flush"))
	second.sink.wait(t, 1)
}

func TestOneLeadsANamespaceUntilItIsSilent(t *testing.T) {
	all := begin(t, 2, nil)
	until(t, "both are active and hear each other", func() bool {
		return len(all[0].Owners("shop")) == 2 && len(all[1].Owners("shop")) == 2 &&
			all[0].Silent(all[1].address) < relay.FreshFor && all[1].Silent(all[0].address) < relay.FreshFor
	})
	leader, other := all[0], all[1]
	if leader.Owners("shop")[0] != leader.Self() {
		leader, other = other, leader
	}
	if !leader.Leads("shop") || other.Leads("shop") {
		t.Error("who is asked first does not lead")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	leader.Shutdown(ctx)
	until(t, "the other leads", func() bool { return other.Leads("shop") })
	if owners := other.Owners("shop"); len(owners) != 2 || owners[0] != leader.Self() {
		t.Errorf("who does not answer owns nothing any more: %v", owners)
	}
}

func TestAListOfReplicasThatIsToldIsFollowed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	told := start(t, relay.Config{Self: fleet.Member{Name: "meshpulse-1", Address: l.Addr().String()}}, l)
	self := fleet.Member{Name: "meshpulse-0", Address: "127.0.0.1:1"}
	r := start(t, relay.Config{Self: self, Logger: slog.New(slog.DiscardHandler)}, nil)
	if r.Cold() == nil {
		t.Error("nothing is known of others, and this one is warm")
	}
	other := fleet.Member{Name: "meshpulse-1", Address: l.Addr().String(), State: fleet.Active}
	r.SetMembers([]fleet.Member{other})
	if r.Cold() == nil || len(r.Members()) != 2 || fmt.Sprint(r.Owners("shop")) != "[meshpulse-1]" {
		t.Errorf("beside one that is active: %v, %v own shop", r.Members(), r.Owners("shop"))
	}
	s := r.Sender(&aggregator.Pod{Namespace: "shop", Name: "cart-0"})
	s.Send(time.Now(), []byte("flush"))
	told.sink.wait(t, 1)
	r.SetMembers(nil)
	if r.Cold() != nil || len(r.Members()) != 1 {
		t.Errorf("by itself: %v, %v", r.Members(), r.Cold())
	}
	s.Send(time.Now(), []byte("nobody gets it"))
	if n := r.metric("meshpulse_relay_sent_frames_total"); n != 0 {
		t.Errorf("%g frames are counted for a replica that is gone", n)
	}
}

// Frames that come one after the other wait for each other. Their age says for how long, so what is
// told of when they came stays true.
func TestFramesThatWaitForEachOtherTellWhenTheyCame(t *testing.T) {
	all := begin(t, 2, nil)
	s := all[0].Sender(&aggregator.Pod{Namespace: "shop", Name: "cart-0"})
	const n = 10
	var sent [n]time.Time
	for i := range n {
		sent[i] = time.Now()
		s.Send(sent[i], fmt.Appendf(nil, "flush %d", i))
		all[1].sink.wait(t, i+1) // each comes alone
	}
	received := time.Now()
	for i, c := range all[1].sink.wait(t, n) {
		if c.message != fmt.Sprint("flush ", i) {
			t.Errorf("%d is %q", i, c.message)
		}
		// Not before it was sent, but for the age's microseconds, and not after it came.
		if c.arrival.Before(sent[i].Add(-time.Millisecond)) || c.arrival.After(received) {
			t.Errorf("%d is told to have come %s after it was sent", i, c.arrival.Sub(sent[i]))
		}
	}
}
