package metricsapi

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// MaxConnections bounds the connections to the HTTPS port, each of which takes 45 KB and a
// descriptor before anybody is asked who he is. An API server needs one or two.
const MaxConnections = 1000

// fairListener bounds the connections of a listener. Past the limit who has the most loses one, so
// whoever comes from elsewhere finds room: the newcomer himself, or his oldest where the newcomer
// is another's.
type fairListener struct {
	net.Listener
	most    int
	refused func() // counts a connection that was closed for the limit

	mu   sync.Mutex
	n    int
	from map[netip.Prefix][]*fairConn // the oldest first
}

type fairConn struct {
	net.Conn
	listener *fairListener
	from     netip.Prefix
	once     sync.Once
}

func newFairListener(l net.Listener, most int, refused func()) *fairListener {
	return &fairListener{Listener: l, most: most, refused: refused, from: map[netip.Prefix][]*fairConn{}}
}

func (l *fairListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		newest := &fairConn{Conn: c, listener: l, from: senderOf(c.RemoteAddr())}
		loser := l.add(newest)
		if loser != nil {
			l.refused()
			_ = loser.Close() // it is gone either way
		}
		if loser != newest {
			return newest, nil
		}
	}
}

// senderOf is who counts as one: an address, of IPv6 the network that a host can take addresses of
// as it likes.
func senderOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	network, err := ip.Prefix(bits)
	if err != nil { // no address
		return netip.Prefix{}
	}
	return network
}

// add takes a connection and returns the one that has to go for it, nil if there is room.
func (l *fairListener) add(c *fairConn) *fairConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	l.from[c.from] = append(l.from[c.from], c)
	if l.n <= l.most {
		return nil
	}
	most := c.from
	for from, conns := range l.from {
		if len(conns) > len(l.from[most]) {
			most = from
		}
	}
	if most == c.from {
		return c
	}
	return l.from[most][0]
}

func (c *fairConn) Close() error {
	c.once.Do(func() {
		l := c.listener
		l.mu.Lock()
		defer l.mu.Unlock()
		l.n--
		rest := slices.DeleteFunc(l.from[c.from], func(o *fairConn) bool { return o == c })
		if l.from[c.from] = rest; len(rest) == 0 {
			delete(l.from, c.from)
		}
	})
	return c.Conn.Close()
}
