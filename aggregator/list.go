package aggregator

import (
	"slices"
	"sync"
	"sync/atomic"
)

// list is a set that grows and shrinks under its mutex and is read without one: a reader gets a slice that never changes.
//
// Appending writes beyond the length that any published header has, so it shares the backing array; removing copies.
type list[T comparable] struct {
	mu   sync.Mutex
	head atomic.Pointer[[]T]
}

// all returns the members. The slice must not be changed.
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

// remove takes all members out for which gone is true, and returns how many are left.
func (l *list[T]) remove(gone func(T) bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.all()
	if !slices.ContainsFunc(old, gone) {
		return len(old)
	}
	s := make([]T, 0, len(old))
	for _, v := range old {
		if !gone(v) {
			s = append(s, v)
		}
	}
	l.head.Store(&s)
	return len(s)
}
