package metricsapi

import (
	"context"
	"log/slog"
	"sync"

	genericrequest "k8s.io/apiserver/pkg/endpoints/request"
)

// readers bounds how many answers are in the making for one user at once: whoever asks without end
// waits for nobody but himself, and the HPA controller still gets its answers. It is safe for
// concurrent use.
type readers struct {
	most int
	log  *slog.Logger

	mu     sync.Mutex
	asking map[string]int  // by user, those above 0
	told   map[string]bool // who has been logged
}

// maxToldReaders bounds the users that are remembered.
const maxToldReaders = 1000

func newReaders(most int, log *slog.Logger) *readers {
	return &readers{most: most, log: log, asking: map[string]int{}, told: map[string]bool{}}
}

// userOf is who asks; everybody is one user where nobody is asked who they are.
func userOf(ctx context.Context) string {
	if u, ok := genericrequest.UserFrom(ctx); ok {
		return u.GetName()
	}
	return ""
}

// enter takes one of the user's places, which leave gives back, or refuses.
func (r *readers) enter(user string) *refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asking[user] < r.most {
		r.asking[user]++
		return nil
	}
	if !r.told[user] {
		if len(r.told) >= maxToldReaders {
			clear(r.told)
		}
		r.told[user] = true
		r.log.Warn("requests refused: the user asks for too much at once: raise --max-reads-per-user, or look who it is", "user", user, "max_reads_per_user", r.most)
	}
	return refuse(outcomeTooMany, "user %q waits for %d answers already, and that is all it may have at once (--max-reads-per-user)", user, r.most)
}

func (r *readers) leave(user string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asking[user]--; r.asking[user] == 0 {
		delete(r.asking, user)
	}
}
