package relay

import (
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats/fleet"
)

// Version is that of the frames. A replica ignores fields that it does not know, so it grows only
// where an older one would take something for what it is not, and then refuses it.
const Version = 1

// Frame is what a replica sends another one: a message of a sidecar's stream, the stream's end, or
// a sign of life. On the wire it is protobuf.
type Frame struct {
	// Stream is the sender's number of the sidecar's stream.
	Stream uint64
	// Pod is who sends, as [AppendPod] writes it. It comes with every frame: whoever gets one needs
	// none before it.
	Pod []byte
	// Age is how long ago the message came in.
	Age time.Duration
	// Message is what the sidecar sent, compressed with s2.
	Message []byte
	// End: the sidecar's stream has ended.
	End bool
	// Beat is nil where the frame is a stream's.
	Beat *Beat
}

// Beat is a sign of life.
type Beat struct {
	// State is the sender's own, Joining before it is ready.
	State fleet.State
	// Ending: the sender is about to end, and will answer nothing more.
	Ending bool
	// Streams is how many sidecars are connected to it.
	Streams int
	// Up is for how long it has taken flushes.
	Up time.Duration
}

// Fields of a frame.
const (
	frameVersion protowire.Number = 1
	frameStream  protowire.Number = 2
	framePod     protowire.Number = 3
	frameAge     protowire.Number = 4 // microseconds
	frameMessage protowire.Number = 5
	frameEnd     protowire.Number = 6
	frameBeat    protowire.Number = 7

	beatState   protowire.Number = 1
	beatEnding  protowire.Number = 2
	beatStreams protowire.Number = 3
	beatUp      protowire.Number = 4 // microseconds
)

// maxAge is the oldest message that a frame may bring: a clock of the future is no age.
const maxAge = time.Hour

var (
	errFrame   = errors.New("frame is malformed")
	errVersion = errors.New("frame is of a version that is not known here")
)

// appendHead appends what comes before the pod.
func appendHead(b []byte, stream uint64, age time.Duration, end bool) []byte {
	b = appendUint(b, frameVersion, Version)
	b = appendUint(b, frameStream, stream)
	b = appendUint(b, frameAge, uint64(max(age, 0).Microseconds()))
	return appendBool(b, frameEnd, end)
}

// appendBeat appends a whole frame that is a sign of life.
func appendBeat(b []byte, beat Beat) []byte {
	var body []byte
	body = appendUint(body, beatState, uint64(beat.State))
	body = appendBool(body, beatEnding, beat.Ending)
	body = appendUint(body, beatStreams, uint64(max(beat.Streams, 0)))
	body = appendUint(body, beatUp, uint64(max(beat.Up, 0).Microseconds()))
	b = appendUint(b, frameVersion, Version)
	return appendField(b, frameBeat, body)
}

func appendUint(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

func appendBool(b []byte, n protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return appendUint(b, n, 1)
}

func appendField(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

// eachField calls f with the fields of a message, numbers in v and bytes in body; other types are
// left out. It reports whether the message is well-formed.
func eachField(b []byte, f func(n protowire.Number, v uint64, body []byte)) bool {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return false
		}
		b = b[size:]
		var v uint64
		var body []byte
		switch kind {
		case protowire.VarintType:
			if v, size = protowire.ConsumeVarint(b); size >= 0 {
				f(n, v, nil)
			}
		case protowire.BytesType:
			if body, size = protowire.ConsumeBytes(b); size >= 0 {
				f(n, 0, body)
			}
		default:
			size = protowire.ConsumeFieldValue(n, kind, b)
		}
		if size < 0 {
			return false
		}
		b = b[size:]
	}
	return true
}

// ReadFrame reads a frame, which refers to the bytes.
func ReadFrame(b []byte) (f Frame, err error) {
	version, age := uint64(0), uint64(0)
	whole := eachField(b, func(n protowire.Number, v uint64, body []byte) {
		switch n {
		case frameVersion:
			version = v
		case frameStream:
			f.Stream = v
		case framePod:
			f.Pod = body
		case frameAge:
			age = v
		case frameMessage:
			f.Message = body
		case frameEnd:
			f.End = v != 0
		case frameBeat:
			if f.Beat = readBeat(body); f.Beat == nil {
				err = errFrame
			}
		}
	})
	switch {
	case !whole || err != nil:
		return Frame{}, errFrame
	case version != Version:
		return Frame{}, fmt.Errorf("%w: %d, not %d", errVersion, version, Version)
	case age > uint64(maxAge.Microseconds()):
		return Frame{}, fmt.Errorf("%w: a message of %d us ago", errFrame, age)
	}
	f.Age = time.Duration(age) * time.Microsecond
	return f, nil
}

// readBeat returns nil where the bytes are malformed.
func readBeat(b []byte) *Beat {
	beat := new(Beat)
	whole := eachField(b, func(n protowire.Number, v uint64, _ []byte) {
		switch n {
		case beatState:
			if v <= uint64(fleet.Leaving) { // a state that is not known here is none to ask
				beat.State = fleet.State(v)
			}
		case beatEnding:
			beat.Ending = v != 0
		case beatStreams:
			beat.Streams = int(min(v, math.MaxInt32))
		case beatUp:
			beat.Up = time.Duration(min(v, math.MaxInt64/1000)) * time.Microsecond
		}
	})
	if !whole {
		return nil
	}
	return beat
}

// podTexts are the fields of a pod that are text, from number 1 on. What is added goes to the end.
func podTexts(p *aggregator.Pod) []*string {
	return []*string{
		&p.Namespace, &p.Name, &p.Workload, &p.App, &p.Version, &p.CanonicalService, &p.CanonicalRevision,
		&p.Address, &p.ServiceAccount, &p.Peer, &p.Sender,
	}
}

// Fields of a pod after its texts.
const (
	podFlush     protowire.Number = 32 // microseconds
	podEviction  protowire.Number = 33 // microseconds
	podInclusive protowire.Number = 34
	podIdentity  protowire.Number = 35 // a certificate has proven namespace and service account
	podStrict    protowire.Number = 36
	podActive    protowire.Number = 37 // Pod.SendsActive
	podPending   protowire.Number = 38 // Pod.SendsPending
)

// AppendPod appends who a sidecar is, as it has said and as its connection has proven, to a frame.
func AppendPod(b []byte, p *aggregator.Pod) []byte {
	for i, text := range podTexts(p) {
		if *text != "" {
			b = appendField(b, protowire.Number(i+1), []byte(*text))
		}
	}
	b = appendUint(b, podFlush, uint64(max(p.FlushInterval, 0).Microseconds()))
	b = appendUint(b, podEviction, uint64(max(p.EvictionInterval, 0).Microseconds()))
	b = appendBool(b, podInclusive, p.InclusiveBounds)
	b = appendBool(b, podIdentity, p.Proof&aggregator.ProofIdentity != 0)
	b = appendBool(b, podStrict, p.Strict)
	b = appendBool(b, podActive, p.SendsActive)
	return appendBool(b, podPending, p.SendsPending)
}

// Limits of what is told of a pod: a name of Kubernetes', a SPIFFE ID, an interval.
const (
	maxText     = 2048
	maxInterval = 24 * time.Hour
)

// ReadPod reads who a sidecar is.
func ReadPod(b []byte) (p aggregator.Pod, err error) {
	texts := podTexts(&p)
	interval := func(v uint64) time.Duration {
		return time.Duration(min(v, uint64(maxInterval.Microseconds()))) * time.Microsecond
	}
	whole := eachField(b, func(n protowire.Number, v uint64, body []byte) {
		switch {
		case int(n) <= len(texts):
			if len(body) > maxText {
				err = fmt.Errorf("%w: a pod's field of %d bytes", errFrame, len(body))
				return
			}
			*texts[n-1] = string(body)
		case n == podFlush:
			p.FlushInterval = interval(v)
		case n == podEviction:
			p.EvictionInterval = interval(v)
		case n == podInclusive:
			p.InclusiveBounds = v != 0
		case n == podIdentity && v != 0:
			p.Proof |= aggregator.ProofIdentity
		case n == podStrict:
			p.Strict = v != 0
		case n == podActive:
			p.SendsActive = v != 0
		case n == podPending:
			p.SendsPending = v != 0
		}
	})
	switch {
	case err != nil:
		return aggregator.Pod{}, err
	case !whole || p.Namespace == "" || p.Name == "":
		return aggregator.Pod{}, fmt.Errorf("%w: it names no pod", errFrame)
	}
	return p, nil
}
