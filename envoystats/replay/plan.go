package replay

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
)

// maxTime is the end of the year 9999 in unix milliseconds: no time in a recording is later.
const maxTime = 253402300799999

// recording is one file: a stream that was recorded.
type recording struct {
	path  string
	node  string
	times []int64 // when each message was received, in unix milliseconds, never descending
}

// node is a sidecar: the recordings of its streams in the order in which they began.
type node struct {
	id      string
	streams []*recording
	// stamps are the timestamps in its messages, ascending, each once.
	stamps []int64
}

// plan reads all files through and sorts them by node. Messages are not kept: they are read again
// when they are sent.
func plan(files []string) ([]*node, error) {
	byID := make(map[string]*node)
	var nodes []*node
	for _, path := range files {
		rec, stamps, err := index(path)
		if err != nil {
			return nil, err
		}
		n := byID[rec.node]
		if n == nil {
			n = &node{id: rec.node}
			byID[rec.node] = n
			nodes = append(nodes, n)
		}
		n.streams = append(n.streams, rec)
		n.stamps = append(n.stamps, stamps...)
	}
	for _, n := range nodes {
		slices.SortStableFunc(n.streams, func(a, b *recording) int { return cmp.Compare(a.times[0], b.times[0]) })
		slices.Sort(n.stamps)
		n.stamps = slices.Compact(n.stamps)
	}
	return nodes, nil
}

// base is the time of the recordings that becomes the start of the replay: when the first message
// of all was received.
func base(nodes []*node) int64 {
	first := int64(math.MaxInt64)
	for _, n := range nodes {
		first = min(first, n.streams[0].times[0])
	}
	return first
}

// index reads a file through once. The error names it.
func index(path string) (*recording, []int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	rec, stamps, err := indexMessages(f)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	rec.path = path
	times, err := readTimes(path)
	if err != nil {
		return nil, nil, err
	}
	if times != nil {
		if len(times) < len(rec.times) {
			return nil, nil, fmt.Errorf("%s: %d lines for %d messages: %w", timesPath(path), len(times), len(rec.times), errTimes)
		}
		copy(rec.times, times)
	}
	for i := 1; i < len(rec.times); i++ {
		rec.times[i] = max(rec.times[i], rec.times[i-1])
	}
	return rec, stamps, nil
}

// indexMessages reads the messages through: the node, each message's own time and all timestamps.
func indexMessages(r io.Reader) (*recording, []int64, error) {
	rd, err := newReader(r)
	if err != nil {
		return nil, nil, err
	}
	rec := new(recording)
	var stamps []int64
	for {
		var m metricsv3.StreamMetricsMessage
		if _, err := rd.next(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, nil, err
		}
		if len(rec.times) == 0 {
			if m.GetIdentifier().GetNode() == nil {
				return nil, nil, errNoNode
			}
			rec.node = m.GetIdentifier().GetNode().GetId()
		}
		time := int64(0)
		if len(rec.times) > 0 {
			time = rec.times[len(rec.times)-1]
		}
		if own := messageStamps(&m); len(own) > 0 {
			time = max(time, own[len(own)-1])
			stamps = append(stamps, own...)
		}
		rec.times = append(rec.times, time)
	}
	if len(rec.times) == 0 {
		return nil, nil, errEmpty
	}
	startWithFirst(rec.times)
	return rec, stamps, nil
}

// startWithFirst gives messages that precede any time the first time that there is.
func startWithFirst(times []int64) {
	i := slices.IndexFunc(times, func(t int64) bool { return t > 0 })
	for j := range max(i, 0) {
		times[j] = times[i]
	}
}

// messageStamps returns the timestamps in a message, ascending, each once.
func messageStamps(m *metricsv3.StreamMetricsMessage) []int64 {
	var stamps []int64
	eachStamp(m, func(t int64) int64 {
		stamps = append(stamps, t)
		return t
	})
	slices.Sort(stamps)
	return slices.Compact(stamps)
}

// eachStamp replaces each timestamp that is one. Others are sent as they are: a sink has to bear
// them.
func eachStamp(m *metricsv3.StreamMetricsMessage, f func(int64) int64) {
	for _, family := range m.GetEnvoyMetrics() {
		for _, metric := range family.GetMetric() {
			if t := metric.GetTimestampMs(); t > 0 && t <= maxTime {
				*metric.TimestampMs = f(t)
			}
		}
	}
}

// moved returns where each of a node's timestamps is moved to: from base to start and closer by the
// speed. All nodes share base and start, so what happened at once still does; what did not stays
// apart by a millisecond at least, in its order.
func moved(stamps []int64, base int64, start time.Time, speed float64) map[int64]int64 {
	to := make(map[int64]int64, len(stamps))
	last := int64(math.MinInt64)
	for _, t := range stamps {
		last = max(last+1, start.UnixMilli()+int64(math.Round(float64(t-base)/speed)))
		to[t] = last
	}
	return to
}
