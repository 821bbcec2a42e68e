package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/web"
)

const mtlsName = "mtls"

// mtlsParts are those of mtls, in their order.
func mtlsParts() []part {
	return []part{
		{"handshake", handshakeRows},
		{"flush", func(ctx context.Context, s settings, t *table) error { return mutualRows(ctx, s, t, 1000, 1.4) }},
		{"flush5000", func(ctx context.Context, s settings, t *table) error { return mutualRows(ctx, s, t, 5000, 1.6) }},
		{"reconnect", reconnectRows},
	}
}

// runMTLS measures what it costs that sidecars prove themselves: a handshake, a flush, and all of
// them at once.
func runMTLS(ctx context.Context, args []string) error {
	s, err := parseSettings(mtlsName, args, nil)
	if err != nil {
		return err
	}
	t := newTable(strings.TrimSpace("make bench-mtls "+strings.Join(args, " ")), time.Now())
	t.title = "What mutual TLS costs"
	var failed error
	for _, part := range mtlsParts() {
		if !s.wants(part.name) {
			continue
		}
		if err := part.run(ctx, s, t); err != nil { // the other parts' rows still tell something
			failed = errors.Join(failed, fmt.Errorf("%s: %w", part.name, err))
			t.note("Part %s failed: %.200s", part.name, strings.Join(strings.Fields(err.Error()), " "))
		}
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		t.note("The machine's load over 1, 5 and 15 minutes at the end: %s.", strings.Join(strings.Fields(string(b))[:3], ", "))
	}
	fmt.Print(t.markdown())
	if len(s.only) > 0 {
		return failed
	}
	return errors.Join(failed, t.write(s.results, "mtls-cost"))
}

// handshakes is how many are made.
const handshakes = 4000

// handshakeRows count the CPU of meshpulse alone while connections are made and closed: proven
// ones, and plaintext ones beside, whose cost is that of a connection. They come some at a time, as
// they do where their cost matters, and one after the other, where meshpulse falls asleep and
// begins with cold caches three times in each.
func handshakeRows(ctx context.Context, s settings, t *table) error {
	certs, err := meshCertificates(s.work)
	if err != nil {
		return err
	}
	config, err := certs.client()
	if err != nil {
		return err
	}
	took := func(abreast int) (plain, mutual float64, err error) {
		mutual, err = connecting(ctx, s, certs, abreast, func(address string) (net.Conn, error) { return tls.Dial("tcp", address, config) })
		if err != nil {
			return 0, 0, err
		}
		plain, err = connecting(ctx, s, nil, abreast, func(address string) (net.Conn, error) { return net.Dial("tcp", address) })
		return plain, mutual, err
	}
	plain, mutual, err := took(8)
	if err != nil {
		return err
	}
	const keys = "TLS 1.2, ECDSA key of meshpulse, RSA keys of the sidecar and of the authority"
	t.add("connections, eight at a time: CPU of meshpulse for one in plaintext", plain, "ms", "lower")
	t.add("connections, eight at a time: CPU of meshpulse for one over mutual TLS", mutual, "ms", "lower")
	t.atMost("handshake, "+keys+": CPU of meshpulse", mutual-plain, "ms", 0.5)
	if plain, mutual, err = took(1); err != nil {
		return err
	}
	t.add("the same, one after the other", mutual-plain, "ms", "lower")
	return nil
}

// connecting returns what a connection takes of a meshpulse's CPU, in milliseconds.
func connecting(ctx context.Context, s settings, certs *certificates, abreast int, dial func(address string) (net.Conn, error)) (float64, error) {
	m, err := meshpulse(ctx, s, certs)
	if err != nil {
		return 0, err
	}
	defer m.Kill()
	connect := func(n int) error {
		for range n {
			c, err := dial(m.Ingest)
			if err != nil {
				return err
			}
			// HTTP/2's preface and empty settings, as gRPC begins.
			_, err = c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
			if err = errors.Join(err, c.Close()); err != nil {
				return err
			}
		}
		return ctx.Err()
	}
	if err := connect(100); err != nil { // the first of them also make what is made once
		return 0, err
	}
	before, err := process.UsageOf(m.PID())
	if err != nil {
		return 0, err
	}
	var all errgroup.Group
	for range abreast {
		all.Go(func() error { return connect(handshakes / abreast) })
	}
	if err := all.Wait(); err != nil {
		return 0, err
	}
	after, err := process.UsageOf(m.PID())
	return (after.CPU - before.CPU).Seconds() * 1000 / handshakes, err
}

// client is what a sidecar does.
func (c *certificates) client() (*tls.Config, error) {
	text, err := os.ReadFile(c.ca)
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(c.clientCert, c.clientKey)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return &tls.Config{
		RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{pair}, NextProtos: []string{"istio", "h2"},
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
	}, nil
}

// mutualRows hold a flush over mutual TLS against one in plaintext, to two that run at the same
// time: alone, the one or the other cost up to a third more than a minute before.
func mutualRows(ctx context.Context, s settings, t *table, pods int, goal float64) error {
	l := load{pods: pods, labelSets: 20, interval: flushInterval}
	runs, err := measureRuns(ctx, s, l, ingestRuns,
		subject{name: fmt.Sprintf("plaintext, %d", pods), start: meshpulse},
		subject{name: fmt.Sprintf("mutual TLS, %d", pods), start: unprofiled, mutual: true})
	if err != nil {
		return err
	}
	median := byRatio(runs)
	plain, mutual := median[0], median[1]
	what := fmt.Sprintf("flush, %d streams of 20 label sets: ", pods)
	t.add(what+"CPU of meshpulse, plaintext", micros(plain.receiver), "us/flush", "lower")
	t.add(what+"CPU of meshpulse, mutual TLS", micros(mutual.receiver), "us/flush", "lower")
	t.atMost(what+"mutual TLS over plaintext", secondOverFirst(median), "x", goal)
	t.add(what+"memory beyond plaintext, a stream", float64(mutual.anonymous-plain.anonymous)/float64(pods)/1024, "KiB", "lower")
	t.note("At %d streams both were measured at the same time; the ratio is the median of %d runs of %v, which were %.2f to %.2f.",
		pods, len(runs), roundSeconds(plain.measured), secondOverFirst(runs[0]), secondOverFirst(runs[len(runs)-1]))
	failedTold(t, what, plain, mutual)
	return nil
}

// reconnectRows have 5,000 sidecars connect anew at once, on the machine that both sides share.
func reconnectRows(ctx context.Context, s settings, t *table) error {
	const pods, limit = 5000, 30 * time.Second
	l := load{pods: pods, labelSets: 20, interval: flushInterval}
	s.work = filepath.Join(s.work, "reconnect")
	if err := os.MkdirAll(s.work, 0o750); err != nil {
		return err
	}
	p, err := putUnder(ctx, s, subject{name: "mutual TLS", start: meshpulse, mutual: true}, l)
	if err != nil {
		return err
	}
	defer p.receiver.Kill()
	defer p.sender.Kill()
	if err := errors.Join(steady(ctx, p.sender, l, 3), caughtUp(ctx, p.receiver, p.sender)); err != nil {
		return err
	}
	steadily, err := count(ctx, s, []loaded{p})
	if err != nil {
		return err
	}
	before, err := p.read(ctx)
	if err != nil {
		return err
	}
	if _, err := web.Do(ctx, p.sender.client, http.MethodPost, "http://"+p.sender.HTTPS+"/reconnect"); err != nil {
		return err
	}
	back := until(ctx, 4*limit, func() error {
		open, err := p.receiver.gauge(ctx, `meshpulse_ingest_connections`)
		st, e := p.sender.fleetStats(ctx)
		if err = errors.Join(err, e); err != nil {
			return err
		}
		if st.Opened-before.fleet.Opened < pods || st.Streams < pods || open < pods {
			return fmt.Errorf("%d streams of %d are back", st.Opened-before.fleet.Opened, pods)
		}
		return nil
	})
	after, err := p.read(ctx)
	if err = errors.Join(back, err); err != nil {
		return err
	}
	took := after.at.Sub(before.at)
	flushes := after.fleet.Flushes - before.fleet.Flushes
	server, client := after.receiver.CPU-before.receiver.CPU, after.sender.CPU-before.sender.CPU
	beyond := server - time.Duration(flushes)*steadily[0].receiver
	const what = "5,000 sidecars connect anew at once over mutual TLS: "
	t.atMost(what+"all are back after", took.Seconds(), "s", limit.Seconds())
	t.atMost(what+"CPU of meshpulse for that, beyond its flushes", beyond.Seconds(), "s", 3)
	t.add(what+"CPU of meshpulse in all meanwhile", server.Seconds(), "s", "lower")
	t.add(what+"CPU of the sidecars in all meanwhile", client.Seconds(), "s", "lower")
	t.atMost(what+"flushes lost, of the sidecar that lost the most", float64(after.fleet.MostFailed-before.fleet.MostFailed), "", 3)
	t.add(what+"flushes lost", float64(after.fleet.Failed-before.fleet.Failed), "", "lower")
	t.note("Meanwhile %d flushes came, at %v of CPU each before.", flushes, steadily[0].receiver)
	return nil
}
