package main

import (
	"bufio"
	"io"
	"net"
	"testing"
)

// says is an end that tells on each connection who it is.
func says(t *testing.T, name string) (address string) {
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
				_, _ = io.WriteString(c, name+"\n")
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	return l.Addr().String()
}

// Connections go to whom they are led to, in turn, and end with a replica that is killed.
func TestAFrontPlaysAService(t *testing.T) {
	f, err := openFront("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	f.add(says(t, "a"))
	f.add(says(t, "b"))
	dial := func() (*bufio.Reader, string) {
		c, err := net.Dial("tcp", f.address())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		r := bufio.NewReader(c)
		who, _ := r.ReadString('\n')
		return r, who
	}
	if _, who := dial(); who != "" {
		t.Errorf("led to %q before anybody is ready", who)
	}
	f.lead(0, true)
	f.lead(1, true)
	to := map[string]*bufio.Reader{}
	for range 2 {
		r, who := dial()
		to[who] = r
	}
	if len(to) != 2 {
		t.Fatalf("led to %v alone", to)
	}
	f.lead(0, false)
	f.cut(0)
	if _, err := to["a\n"].ReadByte(); err == nil {
		t.Error("a connection to who is dead goes on")
	}
	for range 3 {
		if _, who := dial(); who != "b\n" {
			t.Errorf("a new one goes to %q", who)
		}
	}
}
