package aggregator

import (
	"sync"
	"sync/atomic"
)

// list is a set that grows and shrinks under its mutex and is read without one: a reader gets a
// slice that never changes.
//
// Appending writes beyond the length that any published header has, so it shares the backing array.
// A member that goes stays until half of them are gone, when the others are copied: so many can go
// one by one in linear time. Readers tell those that are gone by themselves.
type list[T any] struct {
	mu   sync.Mutex
	head atomic.Pointer[[]T]
	left int // members that are gone
}

// all returns the members, with some that are gone. The slice must not be changed.
func (l *list[T]) all() []T {
	if p := l.head.Load(); p != nil {
		return *p
	}
	return nil
}

func (l *list[T]) add(v T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := append(l.all(), v)
	l.head.Store(&s)
}

// leave notes that one more of the members is gone, and returns how many are not. gone tells which
// they are.
func (l *list[T]) leave(gone func(T) bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.all()
	l.left = min(l.left+1, len(old)) // one that was gone when the others were copied has left with them
	if 2*l.left < len(old) {
		return len(old) - l.left
	}
	s := make([]T, 0, len(old)-l.left)
	for _, v := range old {
		if !gone(v) {
			s = append(s, v)
		}
	}
	l.left = 0
	l.head.Store(&s)
	return len(s)
}
