package link

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// echo is a server that sends everything back.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// client is a connection through a link that has sent its preface.
type client struct {
	t *testing.T
	net.Conn
	*bufio.Reader
}

func connect(t *testing.T, l *Link) client {
	t.Helper()
	c, err := net.Dial("tcp", l.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	conn := client{t, c, bufio.NewReader(c)}
	conn.send(preface)
	conn.expect(preface)
	return conn
}

func (c client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, text); err != nil {
		c.t.Fatal(err)
	}
}

func (c client) expect(text string) {
	c.t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c.Reader, got); err != nil || string(got) != text {
		c.t.Fatalf("got %q, %v, want %q", got, err, text)
	}
}

func open(t *testing.T) *Link {
	t.Helper()
	l, err := Open(Config{Upstream: echo(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func TestCutResetsWhatIsThereAndLetsNewOnesCome(t *testing.T) {
	l := open(t)
	c := connect(t, l)
	l.Cut()
	if _, err := c.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	connect(t, l)
}

func TestRefuseLetsNobodyConnectUntilItEnds(t *testing.T) {
	l := open(t)
	c := connect(t, l)
	if err := l.Refuse(true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	if _, err := net.Dial("tcp", l.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want it refused", err)
	}
	if err := l.Refuse(false); err != nil {
		t.Fatal(err)
	}
	connect(t, l)
}

func TestStallHoldsUpAndLosesNothing(t *testing.T) {
	l := open(t)
	c := connect(t, l)
	l.Stall(true)
	done := make(chan struct{})
	go func() { // whoever sends does not notice
		defer close(done)
		c.send(frame(8, 0, 0, "1234"))
		c.send(frame(8, 0, 0, "5678"))
	}()
	<-done
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if b, err := c.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %q, %v while it is stalled", b, err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	l.Stall(false)
	c.expect(frame(8, 0, 0, "1234") + frame(8, 0, 0, "5678"))
}

func TestASinkThatIsAwayIsAReset(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	l, err := Open(Config{Upstream: gone.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	c, err := net.Dial("tcp", l.Address())
	if err == nil { // the reset may be as early as that
		t.Cleanup(func() { _ = c.Close() })
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}
