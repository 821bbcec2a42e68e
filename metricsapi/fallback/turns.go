package fallback

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// turns bounds how many questions are out at once, in all and of one user; who comes later waits in
// the order of coming.
type turns struct {
	all   *semaphore.Weighted
	ofOne int64

	mu    sync.Mutex
	users map[string]*userTurns
}

type userTurns struct {
	*semaphore.Weighted
	there int // who are in, or wait
}

func newTurns(all, ofOne int64) *turns {
	return &turns{all: semaphore.NewWeighted(all), ofOne: ofOne, users: map[string]*userTurns{}}
}

// enter waits for a turn, which leave gives back. The error is the context's.
func (t *turns) enter(ctx context.Context, user string) (leave func(), err error) {
	u := t.come(user)
	if err := u.Acquire(ctx, 1); err != nil {
		t.gone(user, u)
		return nil, err
	}
	if err := t.all.Acquire(ctx, 1); err != nil {
		u.Release(1)
		t.gone(user, u)
		return nil, err
	}
	return func() {
		t.all.Release(1)
		u.Release(1)
		t.gone(user, u)
	}, nil
}

func (t *turns) come(user string) *userTurns {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.users[user]
	if u == nil {
		u = &userTurns{Weighted: semaphore.NewWeighted(t.ofOne)}
		t.users[user] = u
	}
	u.there++
	return u
}

func (t *turns) gone(user string, u *userTurns) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u.there--; u.there == 0 {
		delete(t.users, user)
	}
}
