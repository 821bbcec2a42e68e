package aggregator

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// accounts is a cluster whose pods run as service accounts: test/web-0 and test/other-0, of the
// addresses 10.0.0.1 and 10.0.0.2.
type accounts struct {
	addressBook
	runAs   map[string]string
	created map[string]time.Time
	pending map[string]bool // Known is not told of them
}

func (a *accounts) ServiceAccount(namespace, name string) (string, time.Time) {
	return a.runAs[namespace+"/"+name], a.created[namespace+"/"+name]
}

func (a *accounts) Known(namespace, name string) (Pod, time.Time, bool) {
	created, ok := a.created[namespace+"/"+name]
	return Pod{Namespace: namespace, Name: name}, created, ok && !a.pending[namespace+"/"+name]
}

func (a *accounts) Exists(namespace, name string) (bool, time.Time) {
	return a.runAs[namespace+"/"+name] != "", time.Time{}
}

func (a *accounts) Denies(string, string) bool { return false }

func (a *accounts) Holder(namespace, name string, address netip.Addr) (own bool, other string) {
	return a.addressBook.Holder(namespace, name, address)
}

// runs is news of a pod.
func (a *accounts) runs(name, account string, created time.Time) {
	a.runAs[name], a.created[name] = account, created
	a.changes++
}

// mesh is a store in such a cluster, and streams.
type mesh struct {
	*rivalry
	*accounts
}

func newMesh(t *testing.T, c Config) mesh {
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	m := mesh{&rivalry{T: t, store: s, streams: map[string]*Stream{}}, &accounts{
		addressBook: addressBook{holders: map[string]string{"10.0.0.1": "test/web-0", "10.0.0.2": "test/other-0"}},
		pending:     map[string]bool{},
		runAs:       map[string]string{"test/web-0": "web", "test/other-0": "other"},
		created:     map[string]time.Time{"test/web-0": s.started.Add(-time.Hour), "test/other-0": s.started.Add(-time.Hour)},
	}}
	s.SetPods(m.accounts)
	return m
}

// shows opens a stream of a pod from an address, with a certificate of a service account, in
// plaintext where that is "".
func (m mesh) shows(name, pod, account, address string, strict bool) {
	p := Pod{Namespace: "test", Name: pod, Address: address + ":1", ServiceAccount: account, Strict: strict, FlushInterval: 5 * time.Second}
	if account != "" {
		p.Proof, p.Peer = ProofIdentity, "spiffe://cluster.local/ns/test/sa/"+account
	}
	m.streams[name] = m.store.Connect(p)
}

// flush commits a flush of the stream.
func (m mesh) flush(name string, at float64) error {
	arrival := m.store.started.Add(time.Duration(at * float64(time.Second)))
	b := counters(arrival, 1, 2)
	return m.streams[name].Commit(arrival, b, numbered{batch: b})
}

// What a stream proves is what the certificate says and the cluster has the pod run as, and its
// address.
func TestWhatIsProven(t *testing.T) {
	for name, tc := range map[string]struct {
		pod, account, address string
		strict, deaf          bool
		want                  Proof
		refused               error
		says                  string
	}{
		"plaintext from nowhere":                {pod: "web-0", address: "10.0.0.9"},
		"plaintext from the pod":                {pod: "web-0", address: "10.0.0.1", want: ProofAddress},
		"the pod's certificate from nowhere":    {pod: "web-0", account: "web", address: "10.0.0.9", want: ProofIdentity | ProofPod},
		"the pod's certificate from the pod":    {pod: "web-0", account: "web", address: "10.0.0.1", want: ProofAddress | ProofIdentity | ProofPod},
		"the same account at another address":   {pod: "web-0", account: "web", address: "10.0.0.2", refused: ErrAddress, says: "10.0.0.2 is test/other-0's"},
		"another account of the namespace":      {pod: "web-0", account: "other", address: "10.0.0.9", refused: ErrIdentity, says: "proves service account other, and test/web-0 runs as web"},
		"another account at its own address":    {pod: "web-0", account: "other", address: "10.0.0.1", refused: ErrIdentity},
		"what is not in step refuses nobody":    {pod: "web-0", account: "other", address: "10.0.0.9", deaf: true, want: ProofIdentity},
		"a pod that nobody knows":               {pod: "vm-0", account: "web", address: "10.0.0.9", want: ProofIdentity},
		"a pod that nobody knows, and has to":   {pod: "vm-0", account: "web", address: "10.0.0.9", strict: true, want: ProofIdentity},
		"a pod that is known, and has to be so": {pod: "web-0", account: "web", address: "10.0.0.9", strict: true, want: ProofIdentity | ProofPod},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, Config{CountForeign: true})
			m.deaf = tc.deaf
			m.shows("s", tc.pod, tc.account, tc.address, tc.strict)
			err := m.flush("s", 5)
			if !errors.Is(err, tc.refused) || tc.refused == nil && err != nil {
				t.Fatalf("error %v, want %v", err, tc.refused)
			}
			if tc.refused != nil {
				if !strings.Contains(err.Error(), tc.says) {
					t.Errorf("error %v, want it to say %q", err, tc.says)
				}
				if n := m.store.tables.count(); n != 0 {
					t.Errorf("%d pods have tables", n)
				}
				return
			}
			if got := m.streams["s"].proof; got != tc.want {
				t.Errorf("proof %d, want %d", got, tc.want)
			}
		})
	}
}

// A pod that has just begun is known some seconds later. Its certificate counts at once; where all
// have to be known it is refused after ten seconds, unless it is known by then.
func TestAPodThatIsNotKnownYetHasTenSeconds(t *testing.T) {
	m := newMesh(t, Config{CountForeign: true})
	m.shows("late", "web-1", "web", "10.0.0.9", true)
	m.shows("never", "vm-0", "web", "10.0.0.9", true)
	m.shows("lax", "vm-1", "web", "10.0.0.9", false)
	for _, name := range []string{"late", "never", "lax"} {
		if err := m.flush(name, 5); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.runs("test/web-1", "web", m.store.started)
	if err := m.flush("late", 10); err != nil || m.streams["late"].proof != ProofIdentity|ProofPod {
		t.Errorf("known by now: proof %d, %v", m.streams["late"].proof, err)
	}
	m.deaf = true
	if err := m.flush("never", 20); err != nil {
		t.Errorf("by what is not in step: %v", err)
	}
	m.deaf = false // what came meanwhile is only being told
	if err := m.flush("never", 29); err != nil {
		t.Errorf("in step for less than ten seconds: %v", err)
	}
	if err := m.flush("never", 30); !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), "knows no pod test/vm-0") || !strings.Contains(err.Error(), "--ingest-strict-namespaces") {
		t.Errorf("after ten seconds: %v", err)
	}
	for name, want := range map[string]Proof{"late": ProofIdentity | ProofPod, "lax": ProofIdentity} {
		if err := m.flush(name, 60); err != nil || m.streams[name].proof != want {
			t.Errorf("%s: proof %d, %v", name, m.streams[name].proof, err)
		}
	}
	m.runs("test/web-1", "", time.Time{}) // it has left
	if err := m.flush("late", 100); err != nil || m.streams["late"].proof != ProofIdentity|ProofPod {
		t.Errorf("after its pod has left: proof %d, %v", m.streams["late"].proof, err)
	}
}

// TestNobodyProvesLessThanThePodHas: whoever comes beside a proven pod, or in a moment between two
// of its connections, and shows less is refused, and its numbers are what they are. A pod of its
// name that came later may be in plaintext.
func TestNobodyProvesLessThanThePodHas(t *testing.T) {
	for name, hostile := range map[string]struct {
		account, address string
		deaf             bool
	}{
		"plaintext":                              {"", "10.0.0.9", false},
		"plaintext from the pod's own address":   {"", "10.0.0.1", false},
		"another account while nothing is known": {"other", "10.0.0.9", true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, Config{})
			m.shows("v", "web-0", "web", "10.0.0.9", false)
			if err := m.flush("v", 5); err != nil {
				t.Fatal(err)
			}
			m.deaf = hostile.deaf
			m.shows("h", "web-0", hostile.account, hostile.address, false)
			downgraded := func(at float64) {
				t.Helper()
				if err := m.flush("h", at); !errors.Is(err, ErrDowngrade) {
					t.Errorf("at %v s: %v", at, err)
				}
			}
			downgraded(6)
			m.streams["v"].Close()
			downgraded(11)
			downgraded(60)
			if got := m.store.Pod("test", "web-0", m.store.started.Add(time.Minute), time.Minute).Rivals; got != nil {
				t.Errorf("contested: %+v", got)
			}
			m.deaf = false
			m.shows("v", "web-0", "web", "10.0.0.9", false)
			if err := m.flush("v", 61); err != nil {
				t.Errorf("the pod itself: %v", err)
			}
			if n := testutil.ToFloat64(m.store.metrics.dropped[ErrDowngrade]); n != 3 {
				t.Errorf("%v samples counted, want 3", n)
			}
		})
	}
}

func TestALaterPodOfTheNameMayProveLess(t *testing.T) {
	m := newMesh(t, Config{})
	m.shows("old", "web-0", "web", "10.0.0.1", false)
	if err := m.flush("old", 5); err != nil {
		t.Fatal(err)
	}
	m.streams["old"].Close()
	m.runs("test/web-0", "web", m.store.started.Add(8*time.Second))
	m.shows("new", "web-0", "", "10.0.0.1", false)
	if err := m.flush("new", 10); err != nil {
		t.Errorf("the next pod, whose sidecar is wired in plaintext: %v", err)
	}
	m.shows("old", "web-0", "web", "10.0.0.1", false)
	if err := m.flush("old", 11); err != nil {
		t.Errorf("more proof takes over again: %v", err)
	}
	if err := m.flush("new", 15); !errors.Is(err, ErrDowngrade) {
		t.Errorf("and now it is the pod that has proven itself: %v", err)
	}
}

// TestWhatAPodHasProvenOutlastsItsRows: a pod that reports nothing for longer than the retention,
// while no certificate is to be had say, is still that pod.
func TestWhatAPodHasProvenOutlastsItsRows(t *testing.T) {
	m := newMesh(t, Config{})
	freed := func(at float64) {
		t.Helper()
		m.store.sweep(t.Context(), m.store.started.UnixMilli()+int64(at*1000))
		if n := m.store.tables.count(); n != 0 {
			t.Fatalf("%d tables are left", n)
		}
	}
	downgraded := func(what string, at float64) {
		t.Helper()
		m.shows("h", "web-0", "", "10.0.0.9", false)
		if err := m.flush("h", at); !errors.Is(err, ErrDowngrade) {
			t.Errorf("%s: %v", what, err)
		}
		m.streams["h"].Close()
	}
	m.shows("v", "web-0", "web", "10.0.0.1", false)
	if err := m.flush("v", 5); err != nil {
		t.Fatal(err)
	}
	m.streams["v"].Close()
	freed(4000)
	downgraded("plaintext once the rows are freed", 4001)
	freed(8000)
	downgraded("plaintext once they are freed again", 8001)
	m.runs("test/web-0", "", time.Time{})
	downgraded("plaintext once the pod has left", 8002)
	m.runs("test/web-0", "web", m.store.started.Add(8003*time.Second))
	m.shows("new", "web-0", "", "10.0.0.1", false)
	if err := m.flush("new", 8005); err != nil {
		t.Errorf("the next pod of the name, whose sidecar is wired in plaintext: %v", err)
	}
	m.streams["new"].Close()
	freed(12000)
	m.shows("new", "web-0", "", "10.0.0.1", false)
	if err := m.flush("new", 12001); err != nil {
		t.Errorf("the same after its own rows are freed: %v", err)
	}
}

// A sidecar that starts before its pod runs connects while the pod is pending: what it proves is of
// that pod, from the first flush on.
func TestAPendingPodsProofIsItsOwn(t *testing.T) {
	m := newMesh(t, Config{})
	m.pending["test/web-0"] = true
	m.shows("v", "web-0", "web", "10.0.0.1", false)
	if err := m.flush("v", 5); err != nil {
		t.Fatal(err)
	}
	m.pending["test/web-0"] = false
	if err := m.flush("v", 10); err != nil {
		t.Fatal(err)
	}
	m.streams["v"].Close()
	m.shows("h", "web-0", "", "10.0.0.9", false)
	if err := m.flush("h", 11); !errors.Is(err, ErrDowngrade) {
		t.Errorf("plaintext between two connections of a pod that runs by now: %v", err)
	}
}

// Of the pods that a query means those are counted that have proven themselves, and the others
// named.
func TestAQuerysPodsAreProvenOrNamed(t *testing.T) {
	m := newMesh(t, Config{CountForeign: true})
	m.shows("a", "web-0", "web", "10.0.0.1", false)
	m.shows("b", "web-2", "", "10.0.0.9", false)
	m.shows("c", "web-1", "", "10.0.0.9", false)
	m.shows("d", "web-3", "", "10.0.0.9", false) // has never sent
	for _, name := range []string{"a", "b", "c"} {
		if err := m.flush(name, 5); err != nil {
			t.Fatal(err)
		}
	}
	q, err := m.store.Query(`sum(rate(istio_requests_total{namespace="test"}[1m]))`)
	if err != nil {
		t.Fatal(err)
	}
	at := m.store.started.Add(6 * time.Second)
	proven, reporting, unproven := q.Proven(at, 5)
	if proven != 1 || reporting != 3 || !slices.Equal(unproven, []string{"test/web-1", "test/web-2"}) {
		t.Errorf("%d of %d, not %v", proven, reporting, unproven)
	}
	if _, _, unproven = q.Proven(at, 1); !slices.Equal(unproven, []string{"test/web-1"}) {
		t.Errorf("at most one is asked for: %v", unproven)
	}
	if name, why := q.Refused(time.Now()); name != "" || why != "" {
		t.Errorf("nobody was refused: %q, %q", name, why)
	}
	m.store.NoteRefused(Pod{Namespace: "elsewhere", Name: "x"}, "no")
	m.store.NoteRefused(Pod{Namespace: "test", Name: "web-0"}, "plaintext")
	m.store.NoteRefused(Pod{Namespace: "test", Name: "web-0"}, "another reason, later")
	if name, why := q.Refused(time.Now()); name != "test/web-0" || why != "plaintext" {
		t.Errorf("refused: %q, %q", name, why)
	}
}
