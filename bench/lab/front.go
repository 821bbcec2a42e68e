package main

import (
	"io"
	"net"
	"sync"
)

// front plays a Service. It is safe for concurrent use.
type front struct {
	listener net.Listener

	mu    sync.Mutex
	turn  int
	too   string // who else gets what is said to either end, "" for nobody
	ends  []string
	led   []bool
	conns []map[net.Conn]bool
}

func openFront(address string) (*front, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	f := &front{listener: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(c)
		}
	}()
	return f, nil
}

func (f *front) address() string { return f.listener.Addr().String() }

func (f *front) close() {
	_ = f.listener.Close()
	for i := range f.ends {
		f.cut(i)
	}
}

// add adds an end, to which nothing is led yet.
func (f *front) add(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ends, f.led, f.conns = append(f.ends, address), append(f.led, false), append(f.conns, map[net.Conn]bool{})
}

// copyTo has an address get what is said to either end from now on.
func (f *front) copyTo(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.too = address
}

func (f *front) to(i int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ends[i]
}

// lead says whether new connections go to an end.
func (f *front) lead(i int, to bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.led[i] = to
}

func (f *front) leads(i int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return i < len(f.led) && f.led[i]
}

// cut ends all connections to an end.
func (f *front) cut(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns[i] {
		_ = c.Close()
	}
}

// next is the end that has its turn, -1 if there is none.
func (f *front) next() (int, string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range f.ends {
		f.turn = (f.turn + 1) % len(f.ends)
		if f.led[f.turn] {
			return f.turn, f.ends[f.turn]
		}
	}
	return -1, ""
}

// serve hands a connection on until either end is gone.
func (f *front) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	i, address := f.next()
	if i < 0 {
		return
	}
	up, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = up.Close() }()
	f.mu.Lock()
	led, too := f.led[i], f.too
	f.conns[i][c], f.conns[i][up] = true, true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.conns[i], c)
		delete(f.conns[i], up)
	}()
	if !led { // killed meanwhile
		return
	}
	go func() {
		_, _ = io.Copy(c, up)
		_ = c.Close() // its replica is gone
	}()
	if too == "" {
		_, _ = io.Copy(up, c)
		return
	}
	beside, err := net.Dial("tcp", too)
	if err != nil {
		return
	}
	defer func() { _ = beside.Close() }()
	go func() { _, _ = io.Copy(io.Discard, beside) }()
	_, _ = io.Copy(up, io.TeeReader(c, beside)) // what one that ends does not get, it has
}
