package envoystats

import (
	"slices"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/meshpulse/meshpulse/aggregator"
)

// askedStream records what it is handed, and asks for what a store's queries do.
type askedStream struct {
	recorderStream
	*aggregator.Stream
}

func (s askedStream) Asked() *aggregator.Asked { return s.Stream.Asked() }
func (s askedStream) Missed(at time.Time)      { s.recorderStream.Missed(at) }
func (s askedStream) Close()                   { s.recorderStream.Close() }
func (s askedStream) Commit(at time.Time, b *aggregator.Batch, d aggregator.Describer) error {
	return s.recorderStream.Commit(at, b, d)
}

// Sizes are not read while nobody asks for them. When somebody does they are, from the next message
// of the pods that he means, and from the first one of those that come later.
func TestWhatAnHPANamesIsReadOfThePodsThatItMeans(t *testing.T) {
	kept := Config{}.Kept()
	store, err := aggregator.New(aggregator.Config{Keep: kept})
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{}
	k := serveWith(t, Config{Keep: kept}, r, func(p aggregator.Pod) podStream {
		return askedStream{r.connect(p).(recorderStream), store.Connect(p)}
	})
	size := func(at int64) *dto.MetricFamily {
		return &dto.MetricFamily{Name: proto.String("istiocustom.istio_request_bytes"), Type: dto.MetricType_HISTOGRAM.Enum(), Metric: []*dto.Metric{{
			TimestampMs: proto.Int64(at), Histogram: &dto.Histogram{SampleCount: proto.Uint64(1), SampleSum: proto.Float64(7)},
		}}}
	}
	read := func(messages int) []string {
		t.Helper()
		waitFor(t, "the message", func() bool { return len(r.all()) == messages })
		return r.all()[messages-1].series
	}
	sends := func(s *sender, want ...string) {
		t.Helper()
		n := len(r.all())
		s.send(message(t, request(int64(1000*(n+1)), 1), size(int64(1000*(n+1)))))
		if got := read(n + 1); !slices.Equal(got, want) {
			t.Errorf("message %d: %q are read, want %q", n+1, got, want)
		}
	}
	const requests, sizes = "istio_requests_total", "istio_request_bytes"
	mine, other := k.open(t).send(hello(t, "web-0", request(1000, 1), size(1000))), k.open(t)
	if got := read(1); !slices.Equal(got, []string{requests}) {
		t.Errorf("%q are read before anybody asks", got)
	}
	other.send(hello(t, "db-0", request(2000, 1), size(2000)))
	read(2)
	if _, err := store.Register(`sum(rate(istio_request_bytes_sum{pod=~"web-.*"}[1m]))`); err != nil {
		t.Fatal(err)
	}
	sends(mine, requests, sizes)
	sends(other, requests)
	k.open(t).send(hello(t, "web-1", request(5000, 1), size(5000)))
	if got := read(5); !slices.Equal(got, []string{requests, sizes}) {
		t.Errorf("%q are read of a pod that comes later", got)
	}
}
