package envoystats

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/meshpulse/meshpulse/aggregator"
)

// panicking is a pod's stream that cannot take a message.
type panicking struct{ recorderStream }

func (panicking) Commit(time.Time, *aggregator.Batch, aggregator.Describer) error { panic("a defect") }

func TestAPanicEndsTheStreamThatItIsInAndNoOther(t *testing.T) {
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{}
	k := serveWith(t, Config{contain: store.Contain}, r, func(p aggregator.Pod) podStream {
		s := r.connect(p)
		if p.Name == "web-1" {
			return panicking{s.(recorderStream)}
		}
		return s
	})
	good, bad := k.open(t).send(hello(t, "web-0", request(1000, 1))), k.open(t).send(hello(t, "web-1", request(1000, 1)))
	if st := bad.end(); st.Code() != codes.Internal {
		t.Errorf("the stream with the fault: %v", st)
	}
	good.send(message(t, request(2000, 2)))
	waitFor(t, "both messages of the other stream", func() bool { return len(k.recorder.all()) == 2 })
	if got := k.metric(t, "stream_ends_total", "fault"); got != 1 {
		t.Errorf("%v streams are counted as ended by a fault, want 1", got)
	}
	if r.mu.Lock(); r.closed != 1 {
		t.Errorf("%d pod streams are closed, want that of the fault", r.closed)
	}
	r.mu.Unlock()
}
