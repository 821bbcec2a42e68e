package main

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
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
	if s.files {
		return a.installFiles(ctx, s)
	}
	o := meshpulseOptions{memory: s.memory}
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
		ingest: a.meshpulse.ingest, https: serviceIP + ":443", pid: p.PID(), exited: p.Exited(), stop: p.Stop, desired: a.desired,
		ask: func(ctx context.Context, query string) sent { return a.ask(ctx, "https://"+serviceIP, query) },
	}, nil
}

// installFiles starts one that reads its HPAs from files, with TLS on its ingest port.
func (a *arena) installFiles(ctx context.Context, s assault) (*subject, error) {
	dir := filepath.Join(a.dir, s.name)
	hpas := filepath.Join(dir, "hpas")
	ports, err := cluster.FreePorts(2)
	err = errors.Join(err,
		os.MkdirAll(hpas, 0o700),
		os.WriteFile(filepath.Join(hpas, "web.yaml"), []byte(victimHPA), 0o600),
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
	m.ask = func(ctx context.Context, query string) sent { return a.ask(ctx, "https://"+m.https, query) }
	p, err := process.Start(filepath.Join(dir, "meshpulse.log"), "env", "GOMEMLIMIT="+memoryText(s.memory), a.lab.meshpulse,
		"serve", "--standalone", "--hpa-dir="+hpas, "--ingest-address="+m.ingest, "--bind-address=127.0.0.1", "--secure-port="+strconv.Itoa(ports[1]),
		"--hold="+attackHold.String(), "--retention="+attackRetention.String(),
		"--tls-cert-file="+filepath.Join(dir, "server.crt"), "--tls-private-key-file="+filepath.Join(dir, "server.key"),
		"--ingest-tls-cert-file="+filepath.Join(dir, "ingest.crt"), "--ingest-tls-private-key-file="+filepath.Join(dir, "ingest.key"))
	if err != nil {
		return nil, err
	}
	m.pid, m.exited, m.stop = p.PID(), p.Exited(), p.Stop
	return m, nil
}
