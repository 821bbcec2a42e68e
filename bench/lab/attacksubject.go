package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/proc"
	"github.com/meshpulse/meshpulse/bench/process"
)

// subject is a meshpulse that is attacked: one that knows the cluster, or one of files.
type subject struct {
	ingest, https string
	pid           int
	exited        <-chan struct{}
	authorities   *x509.CertPool // of its ingest port; nil: plaintext
	folder        string         // with its HPAs and certificates, of one of files
	ask           func(ctx context.Context, query string) sent
	desired       func(ctx context.Context) int32
	stop          func() error
	said          func() string   // its log
	container     *proc.Container // nil where there can be none
}

func (m *subject) ended() bool {
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}

// install starts a meshpulse as an assault wants it.
func (a *arena) install(ctx context.Context, s assault) (*subject, error) {
	c, err := proc.NewContainer(proc.Cgroups, fmt.Sprint("meshpulse-attack-", os.Getpid()), containerMemory)
	if err != nil {
		slog.Warn("the memory of a container is not measured", "error", err)
	}
	start := a.installCluster
	if s.files {
		start = a.installFiles
	}
	m, err := start(ctx, s, within(a.lab.meshpulse, s.descriptors, c))
	if err == nil {
		m.container = c
	} else if c != nil {
		a.close()
		err = errors.Join(err, c.Remove())
	}
	return m, err
}

// within is how a program is started with so many descriptors, 0 for as many as there are, and in a
// container. Pages of the program are nobody's then, as on a node that has not run it before, so
// those that it needs are the container's.
func within(program string, descriptors int, c *proc.Container) func(command ...string) []string {
	script := `exec "$@"`
	if descriptors > 0 {
		script = fmt.Sprintf("ulimit -n %d; ", descriptors) + script
	}
	if c != nil {
		script = `dd of="$0" oflag=nocache conv=notrunc,fdatasync count=0 status=none; ` + script
	}
	return func(command ...string) []string {
		command = append([]string{"sh", "-c", script, program}, command...)
		if c != nil {
			command = c.Command(command...)
		}
		return command
	}
}

// peak is the most memory that its container has had, in MiB, 0 where it has none. It ends the
// container.
func (m *subject) peak() (mib float64, err error) {
	if m.container == nil {
		return 0, nil
	}
	bytes, err := m.container.Peak()
	return float64(bytes) / (1 << 20), errors.Join(err, m.container.Remove())
}

// installCluster starts one that knows the cluster.
func (a *arena) installCluster(ctx context.Context, s assault, within func(command ...string) []string) (*subject, error) {
	o := meshpulseOptions{memory: s.memory, within: within}
	if !s.defaults {
		o.flags = []string{"--hold=" + attackHold.String(), "--retention=" + attackRetention.String()}
	}
	var err error
	if a.meshpulse == nil {
		a.meshpulse, err = installMeshpulse(ctx, a.lab, a.cluster, a.dir, o)
	} else {
		a.meshpulse.options = o
		err = errors.Join(a.meshpulse.configure(ctx, a.meshpulse.base), a.meshpulse.start(ctx))
	}
	if err != nil {
		return nil, err
	}
	p := a.meshpulse.current()
	return &subject{
		ingest: a.meshpulse.ingest, https: serviceIP + ":443", pid: p.PID(), exited: p.Exited(), stop: p.Stop, desired: a.desired, said: func() string { return p.Tail(math.MaxInt32) },
		ask: func(ctx context.Context, query string) sent { return a.ask(ctx, "https://"+serviceIP, "", query) },
	}, nil
}

// installFiles starts one that reads its HPAs from files, with TLS on its ingest port.
func (a *arena) installFiles(ctx context.Context, s assault, within func(command ...string) []string) (*subject, error) {
	dir := filepath.Join(a.dir, s.name)
	hpas := filepath.Join(dir, "hpas")
	ports, err := cluster.FreePorts(2)
	err = errors.Join(err,
		os.MkdirAll(hpas, 0o700),
		os.WriteFile(filepath.Join(hpas, "web.yaml"), []byte(victimHPA), 0o600),
		os.WriteFile(filepath.Join(dir, "tokens"), []byte(readersToken+",lab,lab\n"), 0o600),
		a.cluster.CA.WriteFiles(dir, "server", serverName, nil, []string{serverName, "127.0.0.1"}),
		a.cluster.CA.WriteFiles(dir, "ingest", serverName, nil, []string{serverName, "127.0.0.1"}),
	)
	if err != nil {
		return nil, err
	}
	m := &subject{
		ingest: "127.0.0.1:" + strconv.Itoa(ports[0]), https: "127.0.0.1:" + strconv.Itoa(ports[1]), folder: dir,
		authorities: x509.NewCertPool(), desired: func(context.Context) int32 { return 0 },
	}
	m.authorities.AppendCertsFromPEM(a.cluster.CA.PEM)
	m.ask = func(ctx context.Context, query string) sent {
		return a.ask(ctx, "https://"+m.https, readersToken, query)
	}
	command := within("env", "GOMEMLIMIT="+memoryText(s.memory), a.lab.meshpulse,
		"serve", "--standalone", "--hpa-dir="+hpas, "--ingest-address="+m.ingest, "--bind-address=127.0.0.1", "--secure-port="+strconv.Itoa(ports[1]),
		"--hold="+attackHold.String(), "--retention="+attackRetention.String(), "--token-auth-file="+filepath.Join(dir, "tokens"),
		"--tls-cert-file="+filepath.Join(dir, "server.crt"), "--tls-private-key-file="+filepath.Join(dir, "server.key"),
		"--ingest-tls-cert-file="+filepath.Join(dir, "ingest.crt"), "--ingest-tls-private-key-file="+filepath.Join(dir, "ingest.key"))
	p, err := process.Start(filepath.Join(dir, "meshpulse.log"), command[0], command[1:]...)
	if err != nil {
		return nil, err
	}
	m.pid, m.exited, m.stop, m.said = p.PID(), p.Exited(), p.Stop, func() string { return p.Tail(math.MaxInt32) }
	return m, nil
}
