package main

import (
	"io"
	"net"
	"sync"
)

// front plays a Service: a connection goes to one of the replicas that live, in turn, and what its
// sidecar sends is copied to the oracle. It is safe for concurrent use.
type front struct {
	listener net.Listener
	oracle   string
	replicas []string

	mu    sync.Mutex
	turn  int
	dead  map[int]bool
	conns map[int]map[net.Conn]bool // by replica, both ends
}

func newFront(address, oracle string, replicas []string) (*front, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	f := &front{listener: l, oracle: oracle, replicas: replicas, dead: map[int]bool{}, conns: map[int]map[net.Conn]bool{}}
	go f.accept()
	return f, nil
}

func (f *front) address() string { return f.listener.Addr().String() }

func (f *front) close() { _ = f.listener.Close() }

func (f *front) accept() {
	for {
		c, err := f.listener.Accept()
		if err != nil {
			return
		}
		go f.serve(c)
	}
}

// next is the replica that has its turn, -1 if none lives.
func (f *front) next() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range f.replicas {
		f.turn = (f.turn + 1) % len(f.replicas)
		if !f.dead[f.turn] {
			return f.turn
		}
	}
	return -1
}

// serve hands a connection on until either end is gone.
func (f *front) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	i := f.next()
	if i < 0 {
		return
	}
	up, err := net.Dial("tcp", f.replicas[i])
	if err != nil {
		return
	}
	defer func() { _ = up.Close() }()
	beside, err := net.Dial("tcp", f.oracle)
	if err != nil {
		return
	}
	defer func() { _ = beside.Close() }()
	go func() { _, _ = io.Copy(io.Discard, beside) }()
	if !f.keep(i, c, up) {
		return
	}
	defer f.forget(i, c, up)
	go func() {
		_, _ = io.Copy(c, up)
		_ = c.Close() // the replica is gone
	}()
	// The oracle first: what a replica that dies does not get, the oracle has.
	_, _ = io.Copy(up, io.TeeReader(c, beside))
}

func (f *front) keep(i int, conns ...net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead[i] {
		return false
	}
	if f.conns[i] == nil {
		f.conns[i] = map[net.Conn]bool{}
	}
	for _, c := range conns {
		f.conns[i][c] = true
	}
	return true
}

func (f *front) forget(i int, conns ...net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range conns {
		delete(f.conns[i], c)
	}
}

// leave leads no new connection to a replica, as a Service does once its pod is told to end.
func (f *front) leave(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead[i] = true
}

// kill kills a replica and cuts what leads there, as a node's network does where the process is
// gone. It returns how many connections there were.
func (f *front) kill(i int, kill func()) int64 {
	kill()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead[i] = true
	n := int64(len(f.conns[i]) / 2)
	for c := range f.conns[i] {
		_ = c.Close()
	}
	return n
}

// back leads connections to a replica again.
func (f *front) back(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.dead, i)
}
