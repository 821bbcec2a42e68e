package aggregator

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// addressBook is what a cluster knows of addresses: the pod of each, by namespace and name. All
// pods that it names are known.
type addressBook struct {
	clusterOf
	holders map[string]string
	changes uint64
	deaf    bool // not in step
	stale   bool // for longer
}

func (a *addressBook) Holder(namespace, name string, address netip.Addr) (own bool, other string) {
	switch who := a.holders[address.String()]; who {
	case namespace + "/" + name:
		return true, ""
	default:
		return false, who
	}
}

func (a *addressBook) Changes() uint64 { return a.changes }
func (a *addressBook) InStep() bool    { return !a.deaf && !a.stale }
func (a *addressBook) Fresh() bool     { return !a.stale }

// tell is news of whose an address is, nobody's if that is "".
func (a *addressBook) tell(address, who string) {
	a.holders[address] = who
	a.changes++
}

// addressed is some streams of test/web-0, each of an address of its own, and what the cluster
// knows of these.
type addressed struct {
	*rivalry
	*addressBook
}

// The pod's address is 10.0.0.1, that of the pod beside it 10.0.0.2, and 10.0.0.9 is nobody's.
func newAddressed(t *testing.T) addressed {
	a := addressed{newRivalry(t), &addressBook{
		clusterOf: clusterOf{"test/web-0": {}, "test/web-1": {}}, holders: map[string]string{"10.0.0.1": "test/web-0", "10.0.0.2": "test/web-1"},
	}}
	a.store.SetPods(a.addressBook)
	return a
}

// from opens a stream that says that it is the pod.
func (a addressed) from(name, address string) {
	a.streams[name] = a.store.Connect(Pod{Namespace: "test", Name: "web-0", Address: address + ":1", FlushInterval: 5 * time.Second})
}

// refused says whether a flush of the stream is refused for its address.
func (a addressed) refused(name string, at float64) error {
	arrival := a.store.started.Add(time.Duration(at * float64(time.Second)))
	b := counters(arrival, 1, 2)
	err := a.streams[name].Commit(arrival, b, numbered{batch: b})
	if err != nil && !errors.Is(err, ErrAddress) {
		a.Fatal(err)
	}
	return err
}

// Who sends from the pod's address counts, whoever else says that he is the pod, in whatever order
// they come.
func TestThePodsAddressOutweighsAnyOther(t *testing.T) {
	for name, steps := range map[string]string{"it comes first": "v t v5 t6 v10 t11 v15", "it comes last": "t v v5 t6 v10 t11 v15"} {
		t.Run(name, func(t *testing.T) {
			a := newAddressed(t)
			for step := range strings.FieldsSeq(steps) {
				switch step {
				case "v":
					a.from("v", "10.0.0.1")
				case "t":
					a.from("t", "10.0.0.9")
				default:
					a.play(step)
				}
			}
			if got := a.taken.String(); got != "v.v.v" {
				t.Errorf("taken %s, want v.v.v", got)
			}
			if got := a.store.Pod("test", "web-0", a.store.started.Add(16*time.Second), time.Minute).Rivals; got != nil {
				t.Errorf("contested: %+v", got)
			}
			if own, nobodys := testutil.ToFloat64(a.store.metrics.addresses.WithLabelValues(addressOwn)), testutil.ToFloat64(a.store.metrics.addresses.WithLabelValues(addressNobodys)); own != 1 || nobodys != 1 {
				t.Errorf("%v own and %v nobody's are counted", own, nobodys)
			}
		})
	}
}

// Another pod's address is refused, by name, and what was said leaves no trace.
func TestAnotherPodsAddressIsRefused(t *testing.T) {
	a := newAddressed(t)
	a.from("t", "10.0.0.2")
	err := a.refused("t", 5)
	if err == nil || !strings.Contains(err.Error(), "10.0.0.2 is test/web-1's") || !strings.Contains(err.Error(), "test/web-0") {
		t.Errorf("error %v, want one that names both pods and the address", err)
	}
	if n := a.store.tables.count(); n != 0 {
		t.Errorf("%d pods have tables", n)
	}
	if n := testutil.ToFloat64(a.store.metrics.dropped[ErrAddress]); n != 1 {
		t.Errorf("%v samples are counted, want 1", n)
	}
	a.streams["t"].Missed(a.store.started.Add(6 * time.Second))
	a.streams["t"].Close()
}

// The informer tells of pods and their addresses when it does: a stream is looked at again when
// something has changed, once a second at most, and once in half a minute where its address was the
// pod's.
func TestAnAddressIsLookedAtAgain(t *testing.T) {
	a := newAddressed(t)
	a.tell("10.0.0.1", "")
	a.from("v", "10.0.0.1")
	proof := func(want Proof, at float64) {
		t.Helper()
		if err := a.refused("v", at); err != nil || a.streams["v"].proof != want {
			t.Errorf("at %v s: proof %d, error %v, want %d", at, a.streams["v"].proof, err, want)
		}
	}
	proof(ProofNone, 5)
	a.tell("10.0.0.1", "test/web-0")
	proof(ProofAddress, 10)
	a.tell("10.0.0.1", "")
	proof(ProofAddress, 35)
	proof(ProofNone, 40)
	a.tell("10.0.0.1", "test/web-0")
	proof(ProofNone, 40.5)
	proof(ProofAddress, 45)
	a.tell("10.0.0.1", "test/web-7")
	if err := a.refused("v", 75); err == nil {
		t.Error("its address is another pod's by now, and it is taken")
	}
	if own := testutil.ToFloat64(a.store.metrics.addresses.WithLabelValues(addressOwn)); own != 2 {
		t.Errorf("its own address is counted %v times, want 2", own)
	}
}

// What is not in step refuses nobody: the pod that had the address may be gone. When it is again,
// it does.
func TestNobodyIsRefusedByWhatIsNotInStep(t *testing.T) {
	a := newAddressed(t)
	a.deaf = true
	a.from("t", "10.0.0.2")
	if err := a.refused("t", 5); err != nil {
		t.Errorf("refused: %v", err)
	}
	a.from("v", "10.0.0.1")
	if err := a.refused("v", 6); err != nil || a.streams["v"].proof != ProofAddress {
		t.Errorf("the pod's own address proves %d, error %v", a.streams["v"].proof, err)
	}
	a.deaf = false
	if err := a.refused("t", 10); err == nil {
		t.Error("it is in step, and not refused")
	}
}

// Without a cluster, or without an address of who sends, nothing is held against it.
func TestAnAddressIsComparedInAClusterOnly(t *testing.T) {
	r := newRivalry(t)
	a := addressed{r, &addressBook{holders: map[string]string{}}}
	a.from("t", "10.0.0.2")
	if err := a.refused("t", 5); err != nil {
		t.Errorf("standalone: %v", err)
	}
	a = newAddressed(t)
	a.connect("t")
	if err := a.refused("t", 5); err != nil {
		t.Errorf("without an address: %v", err)
	}
}

// waypointRequests are what a waypoint sends, and what any sidecar does.
type waypointRequests struct{ more []Label }

func (w waypointRequests) Describe(i int) (string, []Label, error) {
	reporter := []string{"waypoint", "destination"}[i]
	return "istio_requests_total", append([]Label{{"reporter", reporter}, {"destination_workload", "podinfo"}}, w.more...), nil
}

// Only who is known as a waypoint reports as one; the others' word is kept apart.
func TestOnlyWaypointsReportAsSuch(t *testing.T) {
	for name, tc := range map[string]struct {
		pod       string
		alone     bool   // standalone
		deaf      bool   // nothing is known of the pods
		comes     bool   // it is known as a waypoint at the third flush
		space     uint64 // of the keys
		more      []Label
		waypoints int // series
		misread   string
	}{
		"a waypoint":                     {pod: "waypoint", waypoints: 1},
		"a waypoint, in a space":         {pod: "waypoint", space: 7, waypoints: 1},
		"a pod that is none":             {pod: "web-0", misread: "reporter.waypoint"},
		"a pod that is none, in a space": {pod: "web-0", space: 7, misread: "reporter.waypoint"},
		"with misread tags of its own":   {pod: "web-0", more: []Label{{MisreadTags, "x"}}, misread: "reporter.waypoint.x"},
		"nobody":                         {pod: "phantom", misread: "reporter.waypoint"},
		"standalone":                     {pod: "phantom", alone: true, waypoints: 1},
		"nothing is known":               {pod: "phantom", deaf: true, waypoints: 1},
		"it is known later":              {pod: "late", comes: true, waypoints: 1},
		"it is known later, in a space":  {pod: "late", comes: true, space: 7, waypoints: 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRivalry(t)
			c := &addressBook{clusterOf: clusterOf{"test/waypoint": {Waypoint: true}, "test/web-0": {}}}
			if tc.deaf {
				c.stale = true
			}
			if !tc.alone {
				r.store.SetPods(c)
			}
			send := func(pod string, more []Label, flushes int) {
				st := r.store.Connect(Pod{Namespace: "test", Name: pod})
				for n := range flushes {
					if n == 2 && tc.comes {
						c.clusterOf["test/late"] = Pod{Waypoint: true}
						c.changes++
					}
					arrival := r.store.started.Add(time.Duration(n+1) * 5 * time.Second)
					b := &Batch{Timestamp: arrival.UnixMilli(), Space: tc.space}
					for i := range 2 {
						b.Samples = append(b.Samples, Sample{Key: uint64(i + 1), Timestamp: b.Timestamp, Kind: Counter, Value: float64(n)})
					}
					if err := st.Commit(arrival, b, waypointRequests{more}); err != nil {
						t.Fatal(err)
					}
				}
			}
			send("waypoint", nil, 1) // whose keys mean the same, but for who sends them
			send(tc.pod, tc.more, 4)
			count := func(selector string) int {
				q, err := r.store.Query(`count(rate(istio_requests_total{pod="` + tc.pod + `",` + selector + `}[11s]))`)
				if err != nil {
					t.Fatal(err)
				}
				a, err := q.Eval(t.Context(), r.store.started.Add(20*time.Second))
				if err != nil {
					t.Fatal(err)
				}
				if len(a.Values) == 0 {
					return 0
				}
				return int(a.Values[0].V)
			}
			if n := count(`reporter="waypoint"`); n != tc.waypoints {
				t.Errorf("%d series are a waypoint's, want %d", n, tc.waypoints)
			}
			if n := count(`reporter="destination"`); n != 1 {
				t.Errorf("%d series of the destination", n)
			}
			if n := count(`misread_tags="` + tc.misread + `",reporter=""`); n != 1-tc.waypoints {
				t.Errorf("%d series are kept apart as %q", n, tc.misread)
			}
		})
	}
}

// waypointRates is of a pod of two series, reporter="waypoint" and "destination", each 100 a
// second, flushed every 5 s for two minutes; at the seventh flush change happens. It returns the
// rates of the first as answers have them at each flush, by the second.
func waypointRates(t *testing.T, c *addressBook, name string, change func()) (rates map[int]float64) {
	r := newRivalry(t)
	r.store.SetPods(c)
	st := r.store.Connect(Pod{Namespace: "test", Name: name, FlushInterval: 5 * time.Second})
	rates = map[int]float64{}
	q, err := r.store.Query(`sum(rate(istio_requests_total{pod="` + name + `",reporter="waypoint"}[11s]))`)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 24 {
		if n == 6 {
			change()
			c.changes++
		}
		arrival := r.store.started.Add(time.Duration(n+1) * 5 * time.Second)
		b := &Batch{Timestamp: arrival.UnixMilli()}
		for i := range 2 {
			b.Samples = append(b.Samples, Sample{Key: uint64(i + 1), Timestamp: b.Timestamp, Kind: Counter, Value: float64((n + 1) * 500)})
		}
		if err := st.Commit(arrival, b, waypointRequests{}); err != nil {
			t.Fatal(err)
		}
		st.table.mu.Lock()
		st.table.closeRow()
		st.table.mu.Unlock()
		a, err := q.Eval(t.Context(), arrival)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range a.Values {
			rates[(n+1)*5] = v.V
		}
	}
	return rates
}

// A waypoint that is known late goes on with what it has counted.
func TestAWaypointIsNeverCountedForMoreThanItServes(t *testing.T) {
	c := &addressBook{clusterOf: clusterOf{"test/web-0": {}}}
	rates := waypointRates(t, c, "late", func() { c.clusterOf["test/late"] = Pod{Waypoint: true} })
	for at, v := range rates {
		if v > 101 {
			t.Errorf("at %d s: %v a second, it serves 100", at, v)
		}
	}
	if rates[120] < 99 {
		t.Errorf("at 120 s: %v a second, it serves 100", rates[120])
	}
}

// What was taken for a waypoint while nothing was known is none from the flush on at which that is
// known.
func TestWhoIsFoundToBeNoWaypointCountsForNoneFromThenOn(t *testing.T) {
	c := &addressBook{clusterOf: clusterOf{"test/web-0": {}}, stale: true}
	rates := waypointRates(t, c, "pod", func() { c.clusterOf["test/pod"] = Pod{}; c.stale = false })
	if v := rates[120]; v != 0 {
		t.Errorf("at 120 s: %v a second in a waypoint's name", v)
	}
}
