// Package chaos is what goes wrong in a chaos run: a schedule of faults drawn from a seed
// (schedule.go), how each is done (faults.go, forged.go, hands.go), and the judgement of what was
// seen under them (judge.go, report.go). Schedule and judgement know kinds of faults, lanes and
// times, and not how a fault is done: no cluster, no process, no connection. The run itself, what
// is booted and looked at, is the lab's.
package chaos

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Kind is a kind of fault.
type Kind string

// The kinds. Those of everybody have no lane.
const (
	// KillMeshpulse kills meshpulse (SIGKILL), of several replicas one, and starts it again at the
	// fault's end.
	KillMeshpulse Kind = "kill-meshpulse"
	// KillSidecar kills the Envoy of a pod and starts it again at the fault's end, with its
	// counters at 0.
	KillSidecar Kind = "kill-sidecar"
	// KillAPIServer kills kube-apiserver and starts it again at the fault's end.
	KillAPIServer Kind = "kill-apiserver"
	// CutStreams resets connections of sidecars again and again.
	CutStreams Kind = "cut-streams"
	// StallStreams holds everything up, both ways, and then lets it through at once.
	StallStreams Kind = "stall-streams"
	// RefuseHalf lets half of every lane's sidecars make no connection.
	RefuseHalf Kind = "refuse-half"
	// Garble changes bytes of half of the messages.
	Garble Kind = "garble-messages"
	// StepClock sets the clock of sidecars to another time, and back at the fault's end.
	StepClock Kind = "step-clock"
	// DeletePods deletes pods; the Deployment makes others.
	DeletePods Kind = "delete-pods"
	// AddPods scales a Deployment up by hand.
	AddPods Kind = "add-pods"
	// NeverReady deletes a pod, and keeps whatever pod comes from getting ready until the fault's
	// end.
	NeverReady Kind = "never-ready"
	// FillBudget has other pods report so many series that the budget is reached.
	FillBudget Kind = "fill-budget"
	// ReplaceCertificates writes a serving certificate whose key is not there yet and a file with
	// roots of the mesh that has none, cuts the streams, and puts both right at the fault's end. A
	// process that starts meanwhile could not, so it never meets KillMeshpulse.
	ReplaceCertificates Kind = "replace-certificates"
	// DeafWatches takes meshpulse's right to list and watch away and cuts its connections to the
	// API server. It lasts a minute longer than others: a watch is believed for so long.
	DeafWatches Kind = "deaf-watches"
	// SecondStream has another sender report as a pod that reports, one that has seen no request,
	// and ends it at the fault's end. By turns it proves nothing, and to be of the same service
	// account.
	SecondStream Kind = "second-stream"
	// ForgedFlush is one message of a pod that does not exist, as the lane's workload, which tells
	// a flush interval of an hour.
	ForgedFlush Kind = "forged-flush"
	// ExpireCertificate has a lane's sidecars show a certificate that ends after a quarter of the
	// fault and is renewed at its end.
	ExpireCertificate Kind = "expire-certificate"
	// AuthorityAway has the mesh's authority answer nobody. It lasts a minute longer than others,
	// as long as certificates do.
	AuthorityAway Kind = "authority-away"
	// ChangeRoot has everybody trust another root of the mesh beside the one before, then sign with
	// it, and trust it alone at the fault's end.
	ChangeRoot Kind = "change-root"
	// OtherIdentity has another sender report as a pod that reports, one that has seen no request,
	// with a certificate of the mesh that is somebody else's.
	OtherIdentity Kind = "other-identity"
	// StopReplica stops a replica where it is (SIGSTOP), and lets it go on at the fault's end.
	StopReplica Kind = "stop-replica"
	// CutFromPeers lets a replica and the others not talk, in both directions or in one.
	CutFromPeers Kind = "cut-from-peers"
	// CutFromSidecars lets a replica not be reached by sidecars. As CutFromPeers it refuses
	// connections or, by turns, has all that is said vanish until the fault's end.
	CutFromSidecars Kind = "cut-from-sidecars"
)

// Kinds are all that strike one meshpulse by itself; ofReplicas are those that there are of several
// besides.
var Kinds = []Kind{
	KillMeshpulse, KillSidecar, KillAPIServer, CutStreams, StallStreams, RefuseHalf, Garble, StepClock,
	DeletePods, AddPods, NeverReady, FillBudget, ReplaceCertificates, DeafWatches, SecondStream, ForgedFlush,
	ExpireCertificate, AuthorityAway, ChangeRoot, OtherIdentity,
}

var ofReplicas = []Kind{StopReplica, CutFromPeers, CutFromSidecars}

// ofAReplica are the kinds that strike one replica.
var ofAReplica = append([]Kind{KillMeshpulse}, ofReplicas...)

// ofALane are the kinds that strike one lane.
var ofALane = []Kind{KillSidecar, CutStreams, StallStreams, Garble, StepClock, DeletePods, AddPods, NeverReady, SecondStream, ForgedFlush, ExpireCertificate, OtherIdentity}

// throughTheAPI are the kinds that need the API server to be done.
var throughTheAPI = []Kind{DeletePods, AddPods, NeverReady, DeafWatches}

// Half is which of a lane's sidecars a fault strikes, as the lab divides them.
type Half int

// The halves.
const (
	Both Half = iota
	First
	Second
)

// Fault is one thing that goes wrong.
type Fault struct {
	// At is when it begins, For how long it lasts.
	At, For time.Duration
	Kind    Kind
	// Lane is the index of the lane that it strikes, -1 for everybody.
	Lane int
	// Replica is the index of the replica that it strikes, -1 for none by itself.
	Replica int
	// Half is whom a fault of streams, messages or clocks strikes; of CutFromPeers the direction:
	// by which the replica is not reached, and by which it does not reach others.
	Half Half
	// Count is how many pods are deleted or added.
	Count int
	// Step is how far a clock is set.
	Step time.Duration
	// Seed is for what the fault itself draws.
	Seed uint64
}

// End is when it is over.
func (f Fault) End() time.Duration { return f.At + f.For }

// Config is what a schedule is drawn from.
type Config struct {
	// Seed decides everything else: the same seed, the same faults.
	Seed uint64
	// Faults is how many there are at least (default 140): every kind occurs equally often.
	Faults int
	// Lanes is how many lanes there are, Replicas how many of meshpulse (default 1). Of several a
	// bout strikes one, the next bout the next: two that are struck within a retention are as one.
	Lanes, Replicas int
	// WarmUp is before the first fault (default 150s), Calm between two bouts (default 75s): longer
	// than the queries' range, so that knowledge is complete again and nothing is held. Settle is
	// after the last fault (default 225s): until the series that filled a budget are out of a
	// retention of two minutes, and then a Calm.
	WarmUp, Calm, Settle time.Duration
	// Bout is how many faults come between two calms (default 35, of several replicas each kind
	// once).
	Bout int
}

// Lengths of a fault, and how many there are at once at most.
const (
	Shortest = time.Second
	Longest  = time.Minute
	AtOnce   = 3
	// Deaf is how much longer meshpulse's watches are deaf, and the mesh's authority away.
	Deaf = time.Minute
	// meanPause is between two faults of a hand.
	meanPause = 6 * time.Second
	// recovery is how long the API server needs before it can be used again, and meshpulse before
	// it has read its files.
	recovery = 15 * time.Second
)

// Validate says what is wrong.
func (c Config) Validate() error {
	if c.Lanes < 1 {
		return errors.New("chaos: no lane")
	}
	if c.Faults < 0 || c.Bout < 0 || c.Replicas < 0 || c.WarmUp < 0 || c.Calm < 0 || c.Settle < 0 {
		return errors.New("chaos: numbers and times must not be negative")
	}
	return nil
}

// kinds are those of a run.
func (c Config) kinds() []Kind {
	if c.Replicas > 1 {
		return slices.Concat(Kinds, ofReplicas)
	}
	return Kinds
}

func (c Config) withDefaults() Config {
	if c.Replicas > 1 {
		if c.Calm == 0 {
			c.Calm = 150 * time.Second
		}
		if c.Bout == 0 {
			c.Bout = len(c.kinds())
		}
	}
	c.Replicas = max(1, c.Replicas)
	if c.Faults == 0 {
		c.Faults = 7 * len(c.kinds())
	}
	if c.WarmUp == 0 {
		c.WarmUp = 150 * time.Second
	}
	if c.Calm == 0 {
		c.Calm = 75 * time.Second
	}
	if c.Settle == 0 {
		c.Settle = 225 * time.Second
	}
	if c.Bout == 0 {
		c.Bout = 35
	}
	return c
}

// Schedule is what goes wrong in a run, by beginning.
type Schedule struct {
	Faults []Fault
	// Length is the whole run's, the last calm included.
	Length time.Duration
	// Kinds are those that it is drawn from.
	Kinds []Kind
	// Replicas is how many of meshpulse there are.
	Replicas int
}

// New draws a schedule: three hands do one fault after another, each with a pause in between.
func New(c Config) (Schedule, error) {
	if err := c.Validate(); err != nil {
		return Schedule{}, err
	}
	c = c.withDefaults()
	d := dealer{config: c, random: rand.New(rand.NewPCG(c.Seed, uint64(len(c.kinds()))))}
	s := Schedule{Kinds: c.kinds(), Replicas: c.Replicas}
	at := c.WarmUp
	for ; len(s.Faults) < c.Faults; d.replica = (d.replica + 1) % c.Replicas {
		bout := d.bout(at, min(c.Bout, c.Faults-len(s.Faults)))
		s.Faults = append(s.Faults, bout...)
		for _, f := range bout {
			at = max(at, f.End())
		}
		at += c.Calm
	}
	s.Length = at - c.Calm + c.Settle
	return s, nil
}

// dealer draws faults from a deck that holds every kind once and is filled again when it is empty.
type dealer struct {
	config Config
	random *rand.Rand
	deck   []Kind
	// replica is whom the bout strikes.
	replica int
}

// bout draws so many faults from a time on. Each is given to the hand that is free first.
func (d *dealer) bout(from time.Duration, count int) []Fault {
	var hands [AtOnce]time.Duration
	for i := range hands {
		hands[i] = from + d.pause()
	}
	var faults []Fault
	for range count {
		hand := 0
		for i, free := range hands {
			if free < hands[hand] {
				hand = i
			}
		}
		f := d.fault(hands[hand], faults)
		faults = append(faults, f)
		hands[hand] = f.End() + d.pause()
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return int(a.At - b.At) })
	return faults
}

func (d *dealer) pause() time.Duration {
	return time.Duration(d.random.ExpFloat64() * float64(meanPause)).Round(time.Millisecond)
}

// fault draws one that begins at a time, or later where it must not meet those that are there.
func (d *dealer) fault(at time.Duration, others []Fault) Fault {
	if len(d.deck) == 0 {
		d.deck = slices.Clone(d.config.kinds())
		d.random.Shuffle(len(d.deck), func(i, j int) { d.deck[i], d.deck[j] = d.deck[j], d.deck[i] })
	}
	f := Fault{At: at, For: d.length(), Lane: -1, Replica: -1, Seed: d.random.Uint64()}
	lane, half, count, step := d.random.IntN(d.config.Lanes), Half(d.random.IntN(3)), 1+d.random.IntN(2), d.step()
	choice := slices.IndexFunc(d.deck, func(k Kind) bool { f.Kind = k; return clash(f, others) <= at })
	if choice < 0 { // none of those that are left fits now
		choice = 0
	}
	f.Kind = d.deck[choice]
	if f.Kind == DeafWatches || f.Kind == AuthorityAway {
		f.For += Deaf
	}
	d.deck = slices.Delete(d.deck, choice, choice+1)
	f.At = max(at, clash(f, others))
	if slices.Contains(ofALane, f.Kind) {
		f.Lane = lane
	}
	if slices.Contains(ofAReplica, f.Kind) {
		f.Replica = d.replica
	}
	switch f.Kind {
	case CutStreams, StallStreams, Garble, CutFromPeers:
		f.Half = half
	case StepClock:
		f.Half, f.Step = half, step
	case RefuseHalf:
		f.Half = First + half%2
	case DeletePods, AddPods:
		f.Count = count
	}
	return f
}

// clash is when a fault may begin: one of a kind at a time, and nothing that needs the API server
// while it is down.
func clash(f Fault, others []Fault) time.Duration {
	for moved := true; moved; {
		moved = false
		for _, o := range others {
			if free := o.freeFor(f.Kind); f.At < free && o.At < max(f.End(), f.freeFor(o.Kind)) {
				f.At, moved = free, true
			}
		}
	}
	return f.At
}

// freeFor is from when on a fault of a kind may follow this one.
func (f Fault) freeFor(kind Kind) time.Duration {
	switch {
	case f.Kind == KillAPIServer && (kind == KillAPIServer || slices.Contains(throughTheAPI, kind)),
		f.Kind == KillMeshpulse && kind == ReplaceCertificates,
		f.Kind == DeafWatches && (kind == KillAPIServer || kind == DeafWatches): // its end goes through the API, and gives back what it found
		return f.End() + recovery
	case f.Kind == kind, kind == KillAPIServer && slices.Contains(throughTheAPI, f.Kind),
		f.Kind == ReplaceCertificates && kind == KillMeshpulse,
		f.Kind == KillMeshpulse && kind == StopReplica, f.Kind == StopReplica && kind == KillMeshpulse:
		return f.End()
	}
	return 0
}

// length is log-uniform between the shortest and the longest.
func (d *dealer) length() time.Duration {
	ratio := float64(Longest) / float64(Shortest)
	return time.Duration(float64(Shortest) * math.Pow(ratio, d.random.Float64())).Round(time.Millisecond)
}

// step is log-uniform between a second and an hour, forwards or backwards.
func (d *dealer) step() time.Duration {
	step := time.Duration(float64(time.Second) * math.Pow(3600, d.random.Float64())).Round(time.Millisecond)
	if d.random.IntN(2) == 0 {
		return -step
	}
	return step
}

// String is the fault in a line.
func (f Fault) String() string {
	text := fmt.Sprintf("%s at %.1fs for %.1fs", f.Kind, f.At.Seconds(), f.For.Seconds())
	if f.Lane >= 0 {
		text += fmt.Sprintf(", lane %d", f.Lane)
	}
	if f.Replica >= 0 {
		text += fmt.Sprintf(", replica %d", f.Replica)
	}
	if f.Half != Both {
		text += fmt.Sprintf(", half %d", f.Half)
	}
	if f.Count > 0 {
		text += fmt.Sprintf(", %d pods", f.Count)
	}
	if f.Step != 0 {
		text += ", by " + f.Step.String()
	}
	return text
}
