package envoystats

import (
	"context"
	"time"
)

// pace bounds what one stream may cost: bytes a second, with credit for a burst. A stream that is
// beyond is read later, so it waits for its own messages and not everyone else; nothing of it is
// lost.
type pace struct {
	credit float64 // bytes; negative: owed
	at     time.Time
}

const (
	// messageCost is what a message costs beside its bytes, in bytes' worth of work: some 3 us
	// against 0.75 us a KiB.
	messageCost = 4 << 10
	// burstSeconds is how long a stream may have been idle for its credit to grow: a flush is one
	// burst in 5 s.
	burstSeconds = 5
)

// spend takes a message of n bytes into account and returns how long the stream has to wait for its
// next one.
func (p *pace) spend(now time.Time, n int, rate float64) time.Duration {
	burst := burstSeconds * rate
	if p.at.IsZero() {
		p.credit = burst
	} else {
		p.credit = min(burst, p.credit+rate*max(0, now.Sub(p.at).Seconds()))
	}
	p.at = now
	p.credit -= float64(n + messageCost)
	if p.credit >= 0 {
		return 0
	}
	return time.Duration(-p.credit / rate * float64(time.Second))
}

// wait returns early with the context's end.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
