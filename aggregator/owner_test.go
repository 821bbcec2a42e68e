package aggregator

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// rivalry is some streams of one pod: what they do, and whom the store takes.
type rivalry struct {
	*testing.T
	store   *Store
	streams map[string]*Stream
	taken   strings.Builder // a letter a message: that of the stream if it was taken, else .
}

func newRivalry(t *testing.T) *rivalry {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	return &rivalry{T: t, store: s, streams: map[string]*Stream{}}
}

// connect opens a stream; a name in capitals comes from the pod's address.
func (r *rivalry) connect(name string) {
	p := Pod{Namespace: "test", Name: "web-0", Address: name + ":1", FlushInterval: 5 * time.Second}
	if name == strings.ToUpper(name) {
		p.Proof = ProofAddress
	}
	r.streams[name] = r.store.Connect(p)
}

// send commits a flush of the stream, and says whether it was taken.
func (r *rivalry) send(name string, at float64) bool {
	arrival := r.store.started.Add(time.Duration(at * float64(time.Second)))
	b := counters(arrival, 1, 2)
	switch err := r.streams[name].Commit(arrival, b, numbered{batch: b}); {
	case err == nil:
		r.taken.WriteString(name)
		return true
	case !errors.Is(err, ErrSuperseded):
		r.Fatal(err)
	}
	r.taken.WriteString(".")
	return false
}

// play does what the steps say: a connects, a5 sends at 5 s, a/ ends.
func (r *rivalry) play(steps string) {
	for step := range strings.FieldsSeq(steps) {
		name := step[:1]
		switch step {
		case name:
			r.connect(name)
		case name + "/":
			r.streams[name].Close()
		default:
			at, err := strconv.ParseFloat(step[1:], 64)
			if err != nil {
				r.Fatal(err)
			}
			r.send(name, at)
		}
	}
}

func TestWhoCountsForAPod(t *testing.T) {
	for name, tc := range map[string]struct {
		steps, taken string
		at           float64
		rivals       Rivals // for a window of a minute; zero: nobody
	}{
		"one":                  {"a a5 a10", "aa", 10, Rivals{}},
		"the newer takes over": {"a a5 b b6 b11", "abb", 30, Rivals{}},
		"and until two flushes the other may be back":    {"a a5 b b6 b11", "abb", 14, Rivals{"b:1", "a:1", false}},
		"which it cannot once it has ended":              {"a a5 b b6 a/ b11", "abb", 11, Rivals{}},
		"ended before":                                   {"a a5 a/ b b6", "ab", 6, Rivals{}},
		"silent for long before":                         {"a a5 b b20", "ab", 20, Rivals{}},
		"a newer connection without a message is nobody": {"a a5 b a10", "aa", 10, Rivals{}},
		"one message of another and its end":             {"a a5 b b6 b/ a10 a15", "abaa", 15, Rivals{"a:1", "b:1", true}},
		"that has left the window":                       {"a a5 b b6 b/ a10 a15 a81", "abaaa", 81, Rivals{}},
		"its end before the first one's":                 {"a b b4 b/ a5 a10", "baa", 10, Rivals{}},
		"one message that was on its way":                {"a a5 b b10 a11 b15 b20", "ab.bb", 22, Rivals{}},
		"one message that was on its way, and its end":   {"a a5 b b10 a11 a/ b15", "ab.b", 15, Rivals{}},
		"both send":                                                   {"a a5 b b6 a10 b11 a15 b16", "ab.b.b", 16, Rivals{"b:1", "a:1", true}},
		"both send, the newer ends":                                   {"a a5 b b6 a10 b11 b/ a15 a20", "ab.baa", 20, Rivals{"a:1", "b:1", true}},
		"the newer stays and says nothing more":                       {"a a5 b b6 a10 a15 a20", "ab..a", 20, Rivals{"a:1", "b:1", true}},
		"three, which end in any order":                               {"a b c a5 b6 c7 b/ a10 c/ a15", "abc.a", 15, Rivals{"a:1", "c:1", true}},
		"the pod's address counts":                                    {"A A5 b b6 A10 b11 A15 b16", "A.A.A.", 16, Rivals{}},
		"the pod's address counts from its first flush on":            {"b b5 A A6 b10 A11", "bA.A", 20, Rivals{}},
		"and what the other one was taken for until then is in doubt": {"b b5 A A6 b10 A11 b15 A16 b65", "bA.A.A.", 65, Rivals{"A:1", "b:1", true}},
		"but no longer":                                               {"b b5 A A6 b10 A11 b15 A16 A77", "bA.A.AA", 77, Rivals{}},
		"it has ended":                                                {"A A5 b b6 A/ b11", "A.b", 11, Rivals{"b:1", "A:1", true}},
		"two of the pod's addresses":                                  {"A A5 B B6 A10 B11 A15", "AB.B.", 15, Rivals{"B:1", "A:1", true}},
		"silence does not outweigh proof":                             {"A A5 b b30", "A.", 30, Rivals{}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRivalry(t)
			r.play(tc.steps)
			if got := r.taken.String(); got != tc.taken {
				t.Errorf("taken %s, want %s", got, tc.taken)
			}
			at := r.store.started.Add(time.Duration(tc.at * float64(time.Second)))
			got := r.store.Pod("test", "web-0", at, time.Minute).Rivals
			if got == nil {
				got = &Rivals{}
			}
			if *got != tc.rivals {
				t.Errorf("rivals %+v, want %+v", *got, tc.rivals)
			}
		})
	}
}

// Whatever streams of a pod come, send and go, one that sends is taken unless another one lives
// that proves more, or as much and is newer.
func TestALiveStreamIsNeverDeaf(t *testing.T) {
	for seed := range uint64(200) {
		r, random := newRivalry(t), rand.New(rand.NewPCG(seed, 20))
		heard, order := map[string]float64{}, map[string]int{}
		now, names := 0.0, "abcABC"
		for n := range 200 {
			name := string(names[random.IntN(len(names))])
			now += random.Float64() * 4
			switch st := r.streams[name]; {
			case st == nil:
				r.connect(name)
				order[name] = n
			case random.IntN(8) == 0:
				st.Close()
				delete(r.streams, name)
				delete(heard, name)
			default:
				better, flush := "", float64(st.table.flush.Load())/1000
				for other, last := range heard { // who was taken, and has not ended
					proof, mine := r.streams[other].pod.Proof, r.streams[name].pod.Proof
					if other != name && (proof > mine || proof == mine && order[other] > order[name] && now-last <= 2*flush) {
						better = other
					}
				}
				switch taken := r.send(name, now); {
				case taken:
					heard[name] = now
				case better == "":
					t.Fatalf("seed %d: %s is deaf at %.1f s, and none that has been heard outranks it: %v", seed, name, now, heard)
				}
			}
		}
	}
}

// A pod that two streams of no different proof report as is told with the queries that select it,
// and counted.
func TestContestedPodsAreTold(t *testing.T) {
	r := newRivalry(t)
	r.play("a a5 b b6 a10 b11 a15 b16")
	q, err := r.store.Register(`sum(rate(istio_requests_total{namespace="test"}[1m]))`)
	if err != nil {
		t.Fatal(err)
	}
	a, err := q.Eval(t.Context(), r.store.started.Add(17*time.Second))
	if err != nil || len(a.Partial) != 1 || a.Partial[0].Rivals == nil || *a.Partial[0].Rivals != (Rivals{"b:1", "a:1", true}) {
		t.Errorf("coverage %+v, error %v, want the pod's rivals", a.Coverage, err)
	}
	if got := testutil.ToFloat64(r.store.metrics.contested); got != 1 {
		t.Errorf("%v messages counted, want 1", got)
	}
}

// A stream that counts again knows nothing of the rows of the one that counted meanwhile.
func TestAStreamThatCountsAgainMovesNoRowsOfOthers(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	send := func(st *Stream, timestamp, arrival time.Duration) {
		b := counters(s.started.Add(timestamp), 1, 2)
		if err := st.Commit(s.started.Add(arrival), b, numbered{batch: b}); err != nil {
			t.Fatal(err)
		}
	}
	pod := Pod{Namespace: "test", Name: "pod"}
	a := s.Connect(pod)
	send(a, 3*time.Second, 5*time.Second)
	b := s.Connect(pod)
	send(b, 6*time.Second, 6*time.Second)
	b.Close()
	send(a, 10*time.Second, 10*time.Second)
	if at := a.table.ring.Rows().Time(2) - s.started.UnixMilli(); at != 6000 {
		t.Errorf("the other's row is at %d ms, want 6000", at)
	}
}

// A contested pod is one for a window and two flushes more: answers also go by the newest time that
// every pod has covered.
func TestAPodStaysContestedForTheEarliestWindow(t *testing.T) {
	r := newRivalry(t)
	r.play("a a5 b b6 a10 b11 a15 b/") // until a takes over, at 20 s
	for at := 20.0; at < 120; at += 5 {
		r.play("a" + strconv.FormatFloat(at, 'f', -1, 64))
		p := r.store.Pod("test", "web-0", r.store.started.Add(time.Duration(at*float64(time.Second))), time.Minute)
		if got, want := p.Rivals != nil, at < 20+60+10; got != want {
			t.Errorf("at %.0f s: contested %v, want %v", at, got, want)
		}
	}
}
