package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/meshpulse/meshpulse/bench/fleet"
	"github.com/meshpulse/meshpulse/bench/identity"
	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/web"
)

// load is what a receiver is put under.
type load struct {
	pods, labelSets int
	busiest         int           // requests a flush of the busiest label set, by Zipf's law; 0: all move
	interval, warm  time.Duration // warm: before anything is counted, but for three flushes of each
	tls, labels     bool
	churn           int // sidecars that hang up in a minute, and come back with their next flush
}

// away is how many sidecars churn may keep from their streams at a time: twice those of one flush
// interval.
func (l load) away() int64 { return int64(2 * float64(l.churn) * l.interval.Minutes()) }

// cost is what a load took.
type cost struct {
	flushes                 int64
	receiver, sender        time.Duration // CPU a flush
	resident                int64
	anonymous, idle         int64 // of resident, what is no page of a file; and before the load
	flushBytes              int64
	lateMs                  int64
	failed                  int64
	receiverShare, measured float64 // of one core; seconds
}

func (c cost) String() string {
	return fmt.Sprintf("%d flushes of %d KB: receiver %v a flush (%.1f %% of a core, RSS %d MB), sender %v, late %d ms, failed %d",
		c.flushes, c.flushBytes>>10, c.receiver, 100*c.receiverShare, c.resident>>20, c.sender, c.lateMs, c.failed)
}

// certificates are a pair for 127.0.0.1, of which ca is the authority; with the pair that clients
// show, "" where they show none.
type certificates struct{ cert, key, ca, clientCert, clientKey string }

// receiver starts what is measured.
type receiver func(ctx context.Context, s settings, tls *certificates) (*child, error)

func nullSink(ctx context.Context, s settings, c *certificates) (*child, error) {
	var args []string
	if c != nil {
		args = []string{"--tls-cert-file", c.cert, "--tls-private-key-file", c.key}
	}
	return startSelf(ctx, s, nullSinkName, args...)
}

func meshpulse(ctx context.Context, s settings, c *certificates) (*child, error) {
	return serving(ctx, s, c, "--profiling-address", profilingAddress)
}

// unprofiled is one beside another: there is one port for profiles.
func unprofiled(ctx context.Context, s settings, c *certificates) (*child, error) {
	return serving(ctx, s, c)
}

func serving(ctx context.Context, s settings, c *certificates, args ...string) (*child, error) {
	dir := filepath.Join(s.work, "no-hpas")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	if c != nil {
		args = append(args, "--ingest-tls-cert-file", c.cert, "--ingest-tls-private-key-file", c.key)
	}
	if c != nil && c.clientCert != "" {
		args = append(args, "--ingest-client-ca-file", c.ca, "--ingest-mtls", "permissive") // as the mesh has it: proof is looked at
	}
	return startMeshpulse(ctx, s, dir, args...)
}

const profilingAddress = "127.0.0.1:16060"

// subject is a receiver that is measured.
type subject struct {
	name   string
	start  receiver
	mutual bool // TLS with certificates of a mesh on both sides
}

// certificates are those that a subject and its load show; nil: none.
func (sub subject) certificates(s settings, l load) (*certificates, error) {
	switch {
	case sub.mutual:
		return meshCertificates(s.work)
	case l.tls:
		return makeCertificates(s.work)
	}
	return nil, nil
}

// measure puts receivers under a load, each under its own and all at the same time, and counts CPU
// time once they are steady: every sidecar has flushed three times. What else the machine does so
// costs all of them.
func measure(ctx context.Context, s settings, l load, subjects ...subject) ([]cost, error) {
	runs, err := measureRuns(ctx, s, l, 1, subjects...)
	if err != nil {
		return nil, err
	}
	return runs[0], nil
}

// measureRuns is measure, counted so many times one after the other.
func measureRuns(ctx context.Context, s settings, l load, times int, subjects ...subject) (runs [][]cost, err error) {
	var all []loaded
	defer func() {
		for i, p := range all {
			p.sender.Kill()
			if e := p.receiver.Stop(); err == nil && e != nil {
				err = fmt.Errorf("%s: %w", subjects[i].name, e)
			}
		}
	}()
	for i, sub := range subjects {
		own := s // for its own logs
		own.work = filepath.Join(s.work, strconv.Itoa(i))
		p, err := putUnder(ctx, own, sub, l)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", sub.name, err)
		}
		all = append(all, p)
	}
	for i, p := range all {
		err := steady(ctx, p.sender, l, 3)
		if err == nil {
			err = caughtUp(ctx, p.receiver, p.sender)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", subjects[i].name, err)
		}
	}
	if err := wait(ctx, l.warm); err != nil {
		return nil, err
	}
	for range times {
		costs, err := count(ctx, s, all)
		if err != nil {
			return nil, err
		}
		for i, c := range costs {
			fmt.Fprintf(os.Stderr, "%-28s %v\n", subjects[i].name, c)
		}
		runs = append(runs, costs)
	}
	if s.profiles == "" || !slices.ContainsFunc(all, func(p loaded) bool { return p.receiver.Name == meshpulseName }) {
		return runs, nil
	}
	return runs, profile(ctx, s, l) // beside the figures, and after them
}

// loaded is a receiver, who sends to it, and the memory that it took before.
type loaded struct {
	receiver, sender *child
	idle             int64
}

func putUnder(ctx context.Context, s settings, sub subject, l load) (loaded, error) {
	if err := os.MkdirAll(s.work, 0o750); err != nil {
		return loaded{}, err
	}
	certs, err := sub.certificates(s, l)
	if err != nil {
		return loaded{}, err
	}
	r, err := sub.start(ctx, s, certs)
	if err != nil {
		return loaded{}, err
	}
	idle, err := idleMemory(ctx, r)
	if err != nil {
		r.Kill()
		return loaded{}, err
	}
	args := fleetArgs(r.Ingest, l)
	if certs != nil {
		args = append(args, certs.fleetArgs()...)
	}
	f, err := startSelf(ctx, s, "fleet", args...)
	if err != nil {
		r.Kill()
		return loaded{}, err
	}
	return loaded{r, f, idle}, nil
}

// idleMemory waits until a receiver answers, and returns its memory that is not pages of files.
func idleMemory(ctx context.Context, r *child) (int64, error) {
	err := until(ctx, time.Minute, func() error {
		_, err := r.messages(ctx)
		return err
	})
	if err != nil {
		return 0, err
	}
	u, err := process.UsageOf(r.PID())
	return u.Anonymous, err
}

// steady waits until every sidecar has a stream, but for churn, and has flushed so often.
func steady(ctx context.Context, f *child, l load, flushes int) error {
	return until(ctx, l.interval*time.Duration(flushes)+time.Minute, func() error {
		st, err := f.fleetStats(ctx)
		if err == nil && (st.Streams < int64(l.pods)-l.away() || st.Flushes < int64(flushes*l.pods)) {
			err = fmt.Errorf("fleet is not steady: %+v", st)
		}
		return err
	})
}

// caughtUp waits until the receiver has read what was sent, but for what is on its way: thousands
// of new pods at once take it some seconds, which gRPC's windows hide from the sender.
func caughtUp(ctx context.Context, r, f *child) error {
	return until(ctx, 2*time.Minute, func() error {
		st, err := f.fleetStats(ctx)
		if err != nil {
			return err
		}
		n, err := r.messages(ctx)
		if err == nil && st.Flushes-n > max(5, st.Streams/100) {
			err = fmt.Errorf("%d of %d flushes have been received", n, st.Flushes)
		}
		return err
	})
}

// reading is what a receiver and its sender have done so far.
type reading struct {
	at               time.Time
	receiver, sender process.Usage
	fleet            fleet.Stats
}

func (p loaded) read(ctx context.Context) (r reading, err error) {
	var e1, e2, e3 error
	r.fleet, e1 = p.sender.fleetStats(ctx)
	r.receiver, e2 = process.UsageOf(p.receiver.PID())
	r.sender, e3 = process.UsageOf(p.sender.PID())
	r.at = time.Now()
	return r, errors.Join(e1, e2, e3)
}

// count takes CPU time and flushes over the measuring time.
func count(ctx context.Context, s settings, all []loaded) ([]cost, error) {
	before := make([]reading, len(all))
	var err error
	for i, p := range all {
		if before[i], err = p.read(ctx); err != nil {
			return nil, err
		}
	}
	if err := wait(ctx, s.measure); err != nil {
		return nil, err
	}
	costs := make([]cost, len(all))
	for i, p := range all {
		after, err := p.read(ctx)
		if err != nil {
			return nil, err
		}
		if costs[i], err = between(before[i], after); err != nil {
			return nil, err
		}
		costs[i].idle = p.idle
	}
	return costs, nil
}

// between is the cost from a reading to a later one.
func between(a, b reading) (cost, error) {
	n := b.fleet.Flushes - a.fleet.Flushes
	if n <= 0 {
		return cost{}, errors.New("nothing was flushed")
	}
	receiver, sender := b.receiver.CPU-a.receiver.CPU, b.sender.CPU-a.sender.CPU
	seconds := b.at.Sub(a.at).Seconds()
	return cost{
		flushes: n, receiver: receiver / time.Duration(n), sender: sender / time.Duration(n),
		resident: b.receiver.Resident, anonymous: b.receiver.Anonymous,
		flushBytes: (b.fleet.Bytes - a.fleet.Bytes) / n, lateMs: b.fleet.LateMs, failed: b.fleet.Failed,
		receiverShare: receiver.Seconds() / seconds, measured: seconds,
	}, nil
}

// profile keeps profiles of meshpulse under load: of its CPU time, and of who waits for whom.
func profile(ctx context.Context, s settings, l load) error {
	if err := os.MkdirAll(s.profiles, 0o750); err != nil {
		return err
	}
	for _, kind := range []struct{ file, path string }{{"cpu", "profile"}, {"mutex", "mutex"}, {"block", "block"}} {
		b, err := web.Get(ctx, http.DefaultClient, "http://"+profilingAddress+"/debug/pprof/"+kind.path+"?seconds=10")
		if err != nil {
			return err
		}
		name := fmt.Sprintf("ingest-%d-tls-%v-labels-%v-%s.pprof", l.pods, l.tls, l.labels, kind.file)
		if err := os.WriteFile(filepath.Join(s.profiles, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// makeCertificates makes a self-signed pair in the folder, by Go's own generator.
func makeCertificates(dir string) (*certificates, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	generator := filepath.Join(string(root[:len(root)-1]), "src/crypto/tls/generate_cert.go")
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "run", generator, "--host", "localhost,127.0.0.1", "--ecdsa-curve", "P256", "--ca", "--duration", "24h")
	cmd.Dir = abs
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("certificate: %w\n%s", err, out)
	}
	cert := filepath.Join(abs, "cert.pem")
	return &certificates{cert: cert, key: filepath.Join(abs, "key.pem"), ca: cert}, nil
}

// fleetArgs are what a fleet is told of them.
func (c *certificates) fleetArgs() []string {
	args := []string{"--ca-file", c.ca}
	if c.clientCert != "" {
		args = append(args, "--cert-file", c.clientCert, "--key-file", c.clientKey)
	}
	return args
}

// meshCertificates are those of a mesh: the server's key is ECDSA, as meshpulse's is, the client's
// RSA, as a sidecar's is, with the identity of the recording's pods.
func meshCertificates(dir string) (*certificates, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	mesh, err := identity.NewRSAAuthority("mesh")
	if err != nil {
		return nil, err
	}
	server, err := mesh.Issue(identity.SPIFFE("meshpulse-system", "meshpulse"), 24*time.Hour, "localhost", "127.0.0.1")
	if err != nil {
		return nil, err
	}
	client, err := mesh.IssueRSA(identity.SPIFFE("test", "default"), 24*time.Hour)
	if err != nil {
		return nil, err
	}
	at := func(name string) string { return filepath.Join(abs, "mesh-"+name+".pem") }
	shown := append(slices.Clone(client.Chain), mesh.PEM...) // as Istio's agents have it: the root is sent along
	for name, content := range map[string][]byte{"ca": mesh.PEM, "cert": server.Chain, "key": server.Key, "client": shown, "client-key": client.Key} {
		if err := os.WriteFile(at(name), content, 0o600); err != nil {
			return nil, err
		}
	}
	return &certificates{cert: at("cert"), key: at("key"), ca: at("ca"), clientCert: at("client"), clientKey: at("client-key")}, nil
}
