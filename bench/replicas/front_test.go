package main

import (
	"bufio"
	"io"
	"net"
	"testing"
)

// listens takes connections and says on each who it is; what comes is told.
func listens(t *testing.T, name string) (address string, came chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	came = make(chan string, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.WriteString(c, name+"\n")
				for s := bufio.NewScanner(c); s.Scan(); {
					came <- s.Text()
				}
			}()
		}
	}()
	return l.Addr().String(), came
}

func dial(t *testing.T, f *front) (c net.Conn, who string) {
	t.Helper()
	c, err := net.Dial("tcp", f.address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	who, err = bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return c, who[:len(who)-1]
}

// Connections go to whoever lives, and the oracle gets what any of them gets.
func TestTheFrontPlaysAService(t *testing.T) {
	oracle, told := listens(t, "oracle")
	a, _ := listens(t, "a")
	b, _ := listens(t, "b")
	f, err := newFront("127.0.0.1:0", oracle, []string{a, b})
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	seen := map[string]net.Conn{}
	for range 2 {
		c, who := dial(t, f)
		seen[who] = c
		if _, err := io.WriteString(c, "flush of "+who+"\n"); err != nil {
			t.Fatal(err)
		}
		if got := <-told; got != "flush of "+who {
			t.Errorf("the oracle gets %q", got)
		}
	}
	if len(seen) != 2 {
		t.Fatalf("connections go to %v alone", seen)
	}
	killed := false
	if n := f.kill(0, func() { killed = true }); n != 1 || !killed {
		t.Errorf("%d connections cut, killed %v", n, killed)
	}
	if _, err := seen["a"].Read(make([]byte, 1)); err == nil {
		t.Error("a connection to who is dead goes on")
	}
	for range 3 {
		if _, who := dial(t, f); who != "b" {
			t.Errorf("a new one goes to %s", who)
		}
	}
	f.back(0)
	f.leave(1)
	if _, who := dial(t, f); who != "a" {
		t.Errorf("one goes to %s, which leaves", who)
	}
}
