package pages

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// view is a page at an instant: the status, and the pieces below it in their order, as HTML. It
// does not change once it is shown.
type view struct {
	order  []string
	pieces map[string]string
}

func newView() *view { return &view{order: []string{}, pieces: map[string]string{}} }

// The pieces that have a place of their own, and so are not in the order.
const (
	statusID  = "status"  // as of when a page is, or what went wrong
	columnsID = "columns" // the table's titles
)

// look asks the source and draws what a page then shows; last is what it showed before, nil at
// first.
type look func(ctx context.Context, last *view) *view

const (
	// patience is how long an answer of the source is waited for.
	patience = 30 * time.Second
	// share is of the time how much the source may be busy: one part in so many.
	share = 20
	// forgetAfter is when what nobody looks at is forgotten.
	forgetAfter = time.Minute
	// writeLimit is how long a reader may take for what is written to it at once.
	writeLimit = 10 * time.Second
	// pulse is how often something is written where nothing changes, so that a reader that has gone
	// is noticed.
	pulse = 15 * time.Second
)

// live keeps pages up to date while somebody looks at them.
type live struct {
	every time.Duration

	mu     sync.Mutex
	topics map[string]*topic
}

// topic is what some pages show alike. Its look is called by one at a time.
type topic struct {
	asking sync.Mutex
	look   look

	mu      sync.Mutex
	shown   *view
	at      time.Time     // when shown was asked for; after it nothing is asked for next
	next    time.Duration // how long
	changed chan struct{} // closed when shown changes
	readers int           // streams
	stop    context.CancelFunc
	used    time.Time
}

func newLive(every time.Duration) *live {
	return &live{every: every, topics: map[string]*topic{}}
}

// topic returns the one of a key, and forgets those that nobody has looked at lately.
func (l *live) topic(key string, newLook func() look) *topic {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for k, t := range l.topics {
		t.mu.Lock()
		if t.readers == 0 && now.Sub(t.used) > forgetAfter {
			delete(l.topics, k)
		}
		t.mu.Unlock()
	}
	t := l.topics[key]
	if t == nil {
		t = &topic{look: newLook(), changed: make(chan struct{})}
		l.topics[key] = t
	}
	t.mu.Lock()
	t.used = now
	t.mu.Unlock()
	return t
}

// newest returns what a topic shows, asked for anew unless that was done lately.
func (l *live) newest(ctx context.Context, t *topic) *view {
	t.asking.Lock()
	defer t.asking.Unlock()
	last, at, next := t.known()
	began := time.Now()
	if last != nil && began.Sub(at) < next {
		return last
	}
	// Who asked first may go while others wait for the same answer.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	v := t.look(ctx, last)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shown, t.at, t.next = v, began, max(l.every, share*time.Since(began))
	close(t.changed)
	t.changed = make(chan struct{})
	return v
}

func (t *topic) known() (*view, time.Time, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.shown, t.at, t.next
}

// enter counts a stream in; the first has the topic asked for from then on. The last that leaves
// ends that.
func (l *live) enter(t *topic) (leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.readers++
	if t.readers == 1 {
		var ctx context.Context
		ctx, t.stop = context.WithCancel(context.Background())
		go l.follow(ctx, t)
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.readers--
		t.used = time.Now()
		if t.readers == 0 {
			t.stop()
		}
	}
}

// follow asks for a topic until the context ends.
func (l *live) follow(ctx context.Context, t *topic) {
	for ctx.Err() == nil {
		l.newest(ctx, t)
		_, at, next := t.known()
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(at.Add(next))):
		}
	}
}

// stream writes what changes of a page as server-sent events, the whole page first, until the
// reader goes.
func (l *live) stream(w http.ResponseWriter, r *http.Request, t *topic) {
	defer l.enter(t)()
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	beat := time.NewTicker(pulse)
	defer beat.Stop()
	var sent *view
	message := []byte("retry: 2000\n\n")
	for {
		t.mu.Lock()
		shown, changed := t.shown, t.changed
		t.mu.Unlock()
		if shown != nil && shown != sent {
			message = append(message, event(sent, shown)...)
			sent = shown
		}
		if len(message) > 0 {
			_ = out.SetWriteDeadline(time.Now().Add(writeLimit)) // what cannot have one is a test's
			if _, err := w.Write(message); err != nil || out.Flush() != nil {
				return
			}
		}
		message = message[:0]
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		case <-beat.C:
			message = append(message, ": still here\n\n"...)
		}
	}
}

// change is what an event says: pieces that are new or other than before, and the order of all
// where it is another.
type change struct {
	Order  *[]string         `json:"order,omitempty"`
	Pieces map[string]string `json:"pieces"`
}

// event is what leads from one view (nil: none) to another, nothing where they are alike.
func event(from, to *view) []byte {
	c := change{Pieces: map[string]string{}}
	if from == nil || !slices.Equal(from.order, to.order) {
		c.Order = &to.order
	}
	for id, html := range to.pieces {
		if from == nil || from.pieces[id] != html {
			c.Pieces[id] = html
		}
	}
	if c.Order == nil && len(c.Pieces) == 0 {
		return nil
	}
	var b bytes.Buffer
	b.WriteString("data: ")
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(c); err != nil { // strings in maps and slices: there is nothing that could fail
		return fmt.Appendf(nil, ": %v\n\n", err)
	}
	b.WriteByte('\n')
	return b.Bytes()
}
