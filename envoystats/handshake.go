package envoystats

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
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
}

// newDoors returns the credentials that the configuration asks for.
func newDoors(c Config, cs *connections) credentials.TransportCredentials {
	if c.Mutual == nil {
		return doors{credentials.NewTLS(c.TLS), cs, false}
	}
	return doors{credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if serving := c.Mutual.Serving(); serving != nil {
				if c, ok := hello.Conn.(*connection); ok {
					c.roots = serving.ClientCAs
				}
				return serving, nil
			}
			return nil, errNoCertificate
		},
	}), cs, true}
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
	c.overTLS = true
	conn, info, err := d.TransportCredentials.ServerHandshake(c)
	c.agreed = true
	if err != nil {
		d.connections.closed(c, closedHandshake, "connection closed: no TLS", slog.Any("error", err))
		return nil, nil, err
	}
	if t, ok := info.(credentials.TLSInfo); ok && d.plaintext {
		c.lasts(t.State)
	}
	return &secured{Conn: conn, connection: c}, info, nil
}

// Clone is part of credentials.TransportCredentials.
func (d doors) Clone() credentials.TransportCredentials {
	return doors{d.TransportCredentials.Clone(), d.connections, d.plaintext}
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

// secured is a connection over TLS.
type secured struct {
	net.Conn
	connection *connection

	// Of ReadOnReady.
	head [64]byte
	more bool
}

// Read counts what is read.
func (s *secured) Read(b []byte) (int, error) {
	s.connection.awaitTurn()
	n, err := s.Conn.Read(b)
	s.connection.count(b[:n])
	return n, err
}

// ReadOnReady is what gRPC calls in place of Read, so that an idle connection holds no buffer. It
// waits with a small one of its own: longer than an acknowledgement or a ping, which come alone.
// Where a record has more, TLS has it ready.
func (s *secured) ReadOnReady(size int, pool mem.BufferPool) (*[]byte, int, error) {
	if s.more {
		s.more = false
		return readBlocking(s, size, pool)
	}
	n, err := s.Read(s.head[:])
	if n == 0 && err != nil {
		return nil, 0, err
	}
	s.more = n == len(s.head)
	buf := pool.Get(size)
	return buf, copy(*buf, s.head[:n]), nil
}

// readBlocking reads into a buffer that is lent before.
func readBlocking(r io.Reader, size int, pool mem.BufferPool) (*[]byte, int, error) {
	buf := pool.Get(size)
	n, err := r.Read(*buf)
	if n == 0 && err != nil {
		pool.Put(buf)
		return nil, 0, err
	}
	return buf, n, nil
}

// Write looks which streams end with what is written.
func (s *secured) Write(b []byte) (int, error) {
	leaves := s.connection.write(b)
	n, err := s.Conn.Write(b)
	if leaves {
		s.connection.leave()
	}
	return n, err
}

// verify reports whether a chain of a client's still comes from one of the roots.
func verify(chain []*x509.Certificate, serving *tls.Config, cs *connections) error {
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: serving.ClientCAs, Intermediates: intermediates, CurrentTime: cs.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}
