package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frame is an HTTP/2 frame.
func frame(kind, flags byte, stream uint32, body string) string {
	header := []byte{byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body)), kind, flags}
	return string(binary.BigEndian.AppendUint32(header, stream)) + body
}

// prefixed is a gRPC message.
func prefixed(message string) string {
	return "\x00" + string(binary.BigEndian.AppendUint32(nil, uint32(len(message)))) + message
}

// through is what comes out of a link for what goes in, chunk by chunk.
func through(t *testing.T, l *Link, in string) (out []string) {
	t.Helper()
	f := &frames{from: strings.NewReader(in), link: l}
	for {
		chunk, err := f.next()
		out = append(out, string(chunk))
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestMessagesAreChangedWhereverTheyAreCut(t *testing.T) {
	first, second := prefixed("first message"), prefixed("second")
	headers, window := frame(1, 4, 1, "hpack"), frame(8, 0, 0, "\x00\x00\x01\x00")
	tests := map[string]string{
		"a frame each":              headers + frame(0, 0, 1, first) + frame(0, 0, 1, second),
		"both in one frame":         headers + frame(0, 0, 1, first+second),
		"cut in the prefix":         headers + frame(0, 0, 1, first[:3]) + window + frame(0, 0, 1, first[3:]+second),
		"cut in the message":        headers + frame(0, 0, 1, first[:9]) + window + frame(0, 0, 1, first[9:15]) + frame(0, 0, 1, first[15:]) + frame(0, 0, 1, second),
		"the second begins early":   headers + frame(0, 0, 1, first+second[:7]) + frame(0, 1, 1, second[7:]),
		"two streams in each other": headers + frame(0, 0, 1, first[:8]) + frame(0, 0, 3, second[:6]) + frame(0, 0, 1, first[8:]) + frame(0, 0, 3, second[6:]),
		"an empty frame between":    headers + frame(0, 0, 1, first) + frame(0, 0, 1, "") + frame(0, 0, 1, second),
	}
	for name, in := range tests {
		t.Run(name, func(t *testing.T) {
			l := &Link{}
			if diff := cmp.Diff(preface+in, strings.Join(through(t, l, preface+in), "")); diff != "" {
				t.Errorf("nothing is to be changed: %s", diff)
			}
			if l.Messages() != 2 {
				t.Errorf("counted %d messages, want 2", l.Messages())
			}
			var seen []string
			undo := l.Change(func(message []byte) {
				seen = append(seen, string(message))
				copy(message, bytes.ToUpper(message))
			})
			got := strings.Join(through(t, l, preface+in), "")
			if len(got) != len(preface+in) || !strings.EqualFold(got, preface+in) || strings.Contains(got, "message") || !strings.Contains(got, "hpack") {
				t.Errorf("got %q for %q", got, preface+in)
			}
			if len(seen) != 2 || seen[0]+seen[1] != "first message"+"second" && seen[0]+seen[1] != "second"+"first message" {
				t.Errorf("saw messages %q", seen)
			}
			undo()
			if diff := cmp.Diff(preface+in, strings.Join(through(t, l, preface+in), "")); diff != "" {
				t.Errorf("nothing is to be changed any more: %s", diff)
			}
		})
	}
}

func TestFramesGoOnAtOnceWhereNothingIsChanged(t *testing.T) {
	out := through(t, &Link{}, preface+frame(0, 0, 1, prefixed("message")[:4])+frame(8, 0, 0, "1234"))
	if want := []string{preface, frame(0, 0, 1, prefixed("message")[:4]), frame(8, 0, 0, "1234"), ""}; !cmp.Equal(out, want) {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestAMessageBeyondTheWindowGoesOnUnchanged(t *testing.T) {
	l := &Link{}
	l.Change(func(message []byte) { clear(message) })
	in := preface
	rest := prefixed(strings.Repeat("x", 2*maxHeld))
	for len(rest) > 0 {
		n := min(len(rest), 16<<10)
		in += frame(0, 0, 1, rest[:n])
		rest = rest[n:]
	}
	out := through(t, l, in)
	if strings.Join(out, "") != in {
		t.Error("it was changed")
	}
	for _, chunk := range out {
		if len(chunk) > maxHeld+(32<<10) {
			t.Errorf("%d bytes were held back", len(chunk))
		}
	}
}

func FuzzFramesPassEverythingOn(f *testing.F) {
	f.Add([]byte(preface + frame(0, 0, 1, prefixed("message"))))
	f.Add([]byte(preface + frame(0, 8, 1, "padded") + frame(3, 0, 1, "rst!") + frame(0, 1, 1, prefixed("x")+"\x01")))
	f.Add([]byte(preface[:5]))
	f.Fuzz(func(t *testing.T, in []byte) {
		l := &Link{}
		l.Change(func([]byte) {})
		if out := strings.Join(through(t, l, string(in)), ""); out != string(in) {
			t.Errorf("got %q for %q", out, in)
		}
	})
}

func TestShiftClockMovesEveryTimestampAndNothingElse(t *testing.T) {
	message := func(at int64) *metricsv3.StreamMetricsMessage {
		m := &metricsv3.StreamMetricsMessage{Identifier: &metricsv3.StreamMetricsMessage_Identifier{}}
		for _, name := range []string{"a", "b"} {
			m.EnvoyMetrics = append(m.EnvoyMetrics, &dto.MetricFamily{Name: &name, Type: dto.MetricType_COUNTER.Enum(), Metric: []*dto.Metric{
				{Counter: &dto.Counter{Value: proto.Float64(7)}, TimestampMs: &at},
			}})
		}
		return m
	}
	at := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	for _, by := range []time.Duration{-time.Hour, -time.Second, time.Millisecond, time.Hour} {
		b, err := proto.Marshal(message(at))
		if err != nil {
			t.Fatal(err)
		}
		ShiftClock(by)(b)
		got := &metricsv3.StreamMetricsMessage{}
		if err := proto.Unmarshal(b, got); err != nil {
			t.Fatal(err)
		}
		if want := message(at + by.Milliseconds()); !proto.Equal(got, want) {
			t.Errorf("by %s: got %v, want %v", by, got, want)
		}
	}
}

func TestGarbleIsTheSameForASeedAndSparesHalf(t *testing.T) {
	text := strings.Repeat("0123456789", 100)
	spared := 0
	one, other := Garble(5), Garble(5)
	for range 1000 {
		a, b := []byte(text), []byte(text)
		one(a)
		other(b)
		if !bytes.Equal(a, b) {
			t.Fatal("one seed, two results")
		}
		if string(a) == text {
			spared++
		}
	}
	if spared < 400 || spared > 600 {
		t.Errorf("%d of 1000 messages were spared, want about half", spared)
	}
}
