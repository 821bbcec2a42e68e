package aggregator

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// turns bounds how many of the engine's queries run: one at a time of each namespace, and few in all. A namespace waits for its own
// first, so it has one place among those that wait for all, however many queries it has, and these go first come, first served.
type turns struct {
	all *semaphore.Weighted

	mu          sync.Mutex
	byNamespace map[string]*turn // of those that run or wait
}

type turn struct {
	one   *semaphore.Weighted
	users int // under turns.mu
}

func newTurns(atATime int) *turns {
	return &turns{all: semaphore.NewWeighted(int64(atATime)), byNamespace: map[string]*turn{}}
}

// wait returns when the namespace has its turn; the caller ends it. The error is the context's, which ended before.
func (t *turns) wait(ctx context.Context, namespace string) (end func(), err error) {
	own := t.join(namespace)
	if err := own.one.Acquire(ctx, 1); err != nil {
		t.leave(namespace, own)
		return nil, err
	}
	if err := t.all.Acquire(ctx, 1); err != nil {
		own.one.Release(1)
		t.leave(namespace, own)
		return nil, err
	}
	return func() {
		t.all.Release(1)
		own.one.Release(1)
		t.leave(namespace, own)
	}, nil
}

func (t *turns) join(namespace string) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	own := t.byNamespace[namespace]
	if own == nil {
		own = &turn{one: semaphore.NewWeighted(1)}
		t.byNamespace[namespace] = own
	}
	own.users++
	return own
}

func (t *turns) leave(namespace string, own *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if own.users--; own.users == 0 {
		delete(t.byNamespace, namespace)
	}
}
