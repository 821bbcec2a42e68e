package aggregator

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"sync/atomic"
)

// Every pod keeps rows of the metrics that Config.Keep names. Of Istio's others one keeps rows only
// while a registered query names them and the pod may have the series: what nobody asks for takes
// no memory, and is not read at all.
//
// Who reads the messages of a stream asks before each of them what to read (Stream.Asked), and
// hands it over with the message (Batch.Asked). So it is known with which flush a metric began to
// be read, however many messages that has: the rows from the one before on tell all of it. A
// histogram needs no past for that, it is sent as intervals. A counter's first value is its past.

// istioPrefix is what the names of Istio's metrics begin with.
const istioPrefix = "istio_"

// keeps reports whether every pod keeps rows of all metrics that begin so.
func (c *Config) keeps(prefix string) bool {
	return c.Keep == nil || slices.ContainsFunc(c.Keep, func(kept string) bool { return strings.HasPrefix(prefix, kept) })
}

// Asked says which metrics are read of a pod beside those that Config.Keep names. Nil is none.
type Asked struct{ metrics []*askedMetric }

// askedMetric is one of them, or several that begin alike.
type askedMetric struct {
	prefix []byte
	// since is the time of the row from which on rows tell all of it: MinInt64 where the pod's
	// first does, 0 where none does yet. The table's writer sets it once.
	since atomic.Int64
	first int64 // number of the flush that was the first to be read for it; under the table's mutex
}

// Has reports whether the metric is read.
func (a *Asked) Has(name []byte) bool {
	return a != nil && slices.ContainsFunc(a.metrics, func(m *askedMetric) bool { return bytes.HasPrefix(name, m.prefix) })
}

// of returns what reads the metrics that begin so, nil if nothing does.
func (a *Asked) of(prefix string) *askedMetric {
	if a == nil {
		return nil
	}
	i := slices.IndexFunc(a.metrics, func(m *askedMetric) bool { return strings.HasPrefix(prefix, string(m.prefix)) })
	if i < 0 {
		return nil
	}
	return a.metrics[i]
}

// Asked returns what is to be read of the stream's next message beside what is kept for whoever
// asks. It changes as queries come and go.
func (st *Stream) Asked() *Asked {
	if st.table == nil { // refused at a limit
		return nil
	}
	return st.table.asking.Load()
}

// ask looks what is to be read of the pod.
func (t *table) ask(queries []*demand) {
	before, pod := t.asking.Load(), t.pod.Load()
	now := &Asked{}
	for _, q := range queries {
		if q.asks == nil {
			continue
		}
		q.asks(pod, func(prefix string) {
			switch m := before.of(prefix); {
			case now.of(prefix) != nil:
			case m != nil && string(m.prefix) == prefix:
				now.metrics = append(now.metrics, m)
			default:
				n := &askedMetric{prefix: []byte(prefix)}
				if m != nil { // it was among others
					n.first = m.first
					n.since.Store(m.since.Load())
				}
				now.metrics = append(now.metrics, n)
			}
		})
	}
	switch {
	case len(now.metrics) == 0:
		t.asking.Store(nil)
	case before == nil || !slices.Equal(before.metrics, now.metrics):
		t.asking.Store(now)
	}
}

// beginReading notes that the flush that has begun is the first to be read for what is asked. The
// time is that of the row before it, 0 if there is none.
func (t *table) beginReading(asked *Asked, before int64) {
	if asked == nil {
		return
	}
	for _, m := range asked.metrics {
		if m.first != 0 {
			continue
		}
		m.first = t.flushes
		if before == 0 {
			before = math.MinInt64
		}
		m.since.Store(before)
	}
}

// readSince returns the time from which on the pod's rows tell all of the metrics that begin so,
// MinInt64 where they do from their first; false if they do not yet.
func (t *table) readSince(prefix string) (since int64, ok bool) {
	m := t.asking.Load().of(prefix)
	if m == nil {
		return 0, false
	}
	since = m.since.Load()
	return since, since != 0
}

// unread reports whether a counter was in no flush since it is read, but for the open one: what it
// counted before is not this flush's. last is the number of the flush that held it before.
func (t *table) unread(c *column, last uint32) bool {
	m := t.asking.Load().of(c.class.name)
	return m != nil && m.first > 1 && (t.flushes == m.first || last != neverSeen && last < uint32(m.first))
}
