package envoystats

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// One port takes plaintext and TLS: a handshake of TLS begins with the byte 0x16, and HTTP/2 with
// the P of its preface. So sidecars can be moved from the one to the other one by one.

// tlsHandshake is the first byte of a TLS record with a part of a handshake.
const tlsHandshake = 0x16

// errNoCertificate ends handshakes while there is nothing to serve them with.
var errNoCertificate = errors.New("the ingest port has no certificate yet: look at meshpulse_ingest_ca_requests_total and at the log")

// maxHandshake bounds what is read before a certificate is verified: a sidecar's is 2 KB, with the
// chain of a plugged-in authority some 8. crypto/tls keeps up to 256 KiB of a chain, which nobody
// counts: connections that begin to show such a one and stop would take all memory.
const maxHandshake = 32 << 10

var errLongHandshake = errors.New("more comes before TLS is agreed upon than a certificate and its chain are")

// doors are the transport's credentials. Connections are counted above TLS, where frames can be
// seen.
type doors struct {
	credentials.TransportCredentials // of TLS
	connections                      *connections
	plaintext                        bool // is let in, too
	pool                             *framePool
}

// newDoors returns the credentials that the configuration asks for.
func newDoors(c Config, cs *connections) credentials.TransportCredentials {
	if c.Mutual == nil {
		return doors{credentials.NewTLS(c.TLS), cs, false, &framePool{}}
	}
	var last atomic.Pointer[handshakes]
	return doors{credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			serving := c.Mutual.Serving()
			if serving == nil {
				return nil, errNoCertificate
			}
			h := last.Load()
			if h == nil || h.of != serving {
				h = newHandshakes(serving, cs)
				last.Store(h)
			}
			if r, ok := hello.Conn.(*records); ok {
				r.roots = serving.ClientCAs
			}
			return h.with(hello), nil
		},
	}), cs, true, &framePool{}}
}

// handshakes are made as a configuration has it, and cost less: a third of one was taken by
// crypto/tls' own verification, and a fifth by X25519.
type handshakes struct {
	of          *tls.Config // Mutual.Serving's
	p256, other *tls.Config
}

func newHandshakes(of *tls.Config, cs *connections) *handshakes {
	other := of.Clone()
	other.ClientAuth = tls.RequireAnyClientCert
	other.VerifyConnection = func(s tls.ConnectionState) error { return verify(s.PeerCertificates, of.ClientCAs, cs.now()) }
	p256 := other.Clone()
	p256.CurvePreferences = []tls.CurveID{tls.CurveP256}
	return &handshakes{of, p256, other}
}

// with is how a client is served. P-256 is made by hand for this machine, X25519 is not, and takes
// half as long again. A client of TLS 1.3 has chosen already: to ask for another one is a round
// trip.
func (h *handshakes) with(hello *tls.ClientHelloInfo) *tls.Config {
	if slices.Contains(hello.SupportedCurves, tls.CurveP256) && !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
		return h.p256
	}
	return h.other
}

// ServerHandshake is called by gRPC with what Accept gave.
func (d doors) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*connection)
	if !ok {
		return d.TransportCredentials.ServerHandshake(raw)
	}
	if d.plaintext {
		first, err := c.peek()
		if err != nil { // whoever only looks whether the port is open, as the kubelet does
			d.connections.left(c, closedNothing)
			return nil, nil, io.EOF
		}
		if first != tlsHandshake {
			return insecure.NewCredentials().ServerHandshake(c)
		}
	}
	r := &records{connection: c, pool: d.pool}
	conn, info, err := d.TransportCredentials.ServerHandshake(r)
	r.agreed = true
	if err != nil {
		d.connections.closed(c, closedHandshake, "connection closed: no TLS", slog.Any("error", err))
		return nil, nil, err
	}
	if t, ok := info.(credentials.TLSInfo); ok && d.plaintext {
		c.lasts(t.State)
	}
	return &secured{Conn: conn, records: r}, info, nil
}

// Clone is part of credentials.TransportCredentials.
func (d doors) Clone() credentials.TransportCredentials {
	return doors{d.TransportCredentials.Clone(), d.connections, d.plaintext, d.pool}
}

// peek waits for the first byte, which is read again.
func (c *connection) peek() (byte, error) {
	if _, err := io.ReadFull(c.Conn, c.first[:]); err != nil {
		return 0, err
	}
	c.peeked = true
	return c.first[0], nil
}

// again gives the byte that was looked at, once.
func (c *connection) again(b []byte) (n int) {
	if !c.peeked || len(b) == 0 {
		return 0
	}
	c.peeked = false
	return copy(b, c.first[:])
}

// verify says why a chain of a client's, leaf first, does not come from one of the roots.
//
// Istio's agents send the root along, which crypto/tls takes for an intermediate as well: the
// leaf's signature is then verified twice, once by each. So such are tried only where it does not
// verify without: by another key of the root's name a root may have signed its successor's.
func verify(chain []*x509.Certificate, roots *x509.CertPool, at time.Time) error {
	intermediates, left := x509.NewCertPool(), false
	for _, c := range chain[1:] {
		if bytes.Equal(c.RawSubject, c.RawIssuer) {
			left = true
			continue
		}
		intermediates.AddCert(c)
	}
	options := x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	_, err := chain[0].Verify(options)
	if err == nil || !left {
		return err
	}
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err = chain[0].Verify(options)
	return err
}
