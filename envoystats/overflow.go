package envoystats

import (
	"hash/maphash"
	"maps"
	"slices"
	"strings"

	"github.com/meshpulse/meshpulse/aggregator"
)

// overflow lets series share one where a pod has very many of them that its callers make: whoever
// sends a request chooses its Host header and what custom tags are made from, and each value is a
// series. Refused, they would be missing in sums. So past Config.MaxCallerSeries new ones lose
// those labels, carry otel_metric_overflow="true" as with OpenTelemetry's limit, and are added up
// here: sums stay right, a flush late, since a flush is whole when the next one comes. A stream
// owns one.
type overflow struct {
	flush   int64 // timestamp of the newest
	samples int   // of it so far
	watched int64 // first flush of which all keys are known; 0: too few to watch

	own    map[uint64]int64   // keys that have a series of their own, and the flush that had them last
	shared map[uint64]*sharer // keys that have not
	groups map[string]*group
	order  []*group
	turned int64 // flush that is added up
	pruned int64
}

// sharer is one of the series that share another.
type sharer struct {
	group *group
	last  float64 // of a counter
	at    int64   // newest flush
}

// group is a series that others share.
type group struct {
	key    uint64
	kind   aggregator.Kind
	name   string
	labels []aggregator.Label

	next, ready sum // of the flush that comes in, and of those that are whole
	total       float64
	came, due   bool // there is something in them
}

// sum is an interval, of counters or histograms.
type sum struct {
	value   float64
	count   uint64
	buckets []aggregator.Bucket
}

const (
	overflowLabel = "otel_metric_overflow"
	// watchedPart of the limit is how many samples of a flush make it worth to remember their keys.
	// A key that is new when keys are known began at 0, else its past is not known.
	watchedPart = 8
	// forgotten is how long keys that do not come are remembered, in milliseconds: as long as their
	// series by default.
	forgotten = 5 * 60 * 1000
	maxGroups = 1000
)

// watch takes a message into account and reports whether keys of its flush have to be looked at.
func (o *overflow) watch(b *aggregator.Batch, limit int) bool {
	if b.Timestamp != o.flush {
		o.flush, o.samples = b.Timestamp, 0
	}
	o.samples += len(b.Samples)
	if o.own == nil && o.samples <= limit/watchedPart {
		return false
	}
	if o.own == nil {
		o.own, o.shared, o.groups, o.watched = map[uint64]int64{}, map[uint64]*sharer{}, map[string]*group{}, b.Timestamp
	}
	return true
}

// share replaces the samples that share a series by those of the flush before. Known keys cost a
// look-up each.
func (s *scan) share(o *overflow) {
	if !o.watch(&s.batch, s.rules.callerSeries) {
		return
	}
	if o.turned != o.flush {
		o.turn(s.rules.callerSeries)
	}
	n := 0
	for i := range s.batch.Samples {
		if sample := s.batch.Samples[i]; sample.Timestamp != o.flush || !s.takeShared(o, &sample, i) {
			s.batch.Samples[n], s.origins[n] = sample, s.origins[i]
			n++
		}
	}
	s.shared = uint32(len(s.batch.Samples) - n)
	s.batch.Samples, s.origins = s.batch.Samples[:n], s.origins[:n]
	for i, g := range o.order {
		if g.due {
			g.due = false
			s.send(g, i)
		}
	}
	s.groups = o.order
}

// takeShared adds a sample up, if it is one that shares its series.
func (s *scan) takeShared(o *overflow, sample *aggregator.Sample, i int) bool {
	if _, own := o.own[sample.Key]; own {
		o.own[sample.Key] = o.flush
		return false
	}
	sh, first := o.shared[sample.Key], false
	if sh == nil {
		if len(o.own) < s.rules.callerSeries {
			o.own[sample.Key] = o.flush
			return false
		}
		g := s.groupOf(o, i)
		if g == nil || len(o.shared) >= 16*s.rules.callerSeries {
			return false
		}
		sh, first = &sharer{group: g}, true
		o.shared[sample.Key] = sh
	}
	if sample.Kind == aggregator.Summary { // its histogram comes, too
		return true
	}
	if sh.at != o.flush {
		sh.group.add(sample, s.batch.Buckets[sample.First:sample.Last], s.increase(o, sh, sample, first))
	}
	sh.at, sh.last = o.flush, sample.Value
	return true
}

// increase is what a counter has counted since its last flush.
func (s *scan) increase(o *overflow, sh *sharer, sample *aggregator.Sample, first bool) float64 {
	switch {
	case s.rules.deltas || sample.Kind != aggregator.Counter:
		return sample.Value
	case first && o.flush == o.watched:
		return 0
	case first || sample.Value < sh.last:
		return sample.Value
	}
	return sample.Value - sh.last
}

// groupOf returns the group of a sample, nil if there is nothing in its labels that a caller
// chooses.
func (s *scan) groupOf(o *overflow, i int) *group {
	name, labels, err := s.Describe(i)
	if err != nil || !strings.HasPrefix(name, istioPrefix) || s.origins[i].kind == aggregator.Gauge {
		return nil
	}
	inbound := slices.Contains(labels, aggregator.Label{Name: "reporter", Value: "destination"})
	kept := slices.DeleteFunc(slices.Clone(labels), func(l aggregator.Label) bool { return s.rules.names.callers(l.Name, inbound) })
	if len(kept) == len(labels) {
		return nil
	}
	slices.SortFunc(kept, func(a, b aggregator.Label) int { return strings.Compare(a.Name, b.Name) })
	kind := s.origins[i].kind
	seed := s.rules.distributionSeed
	if kind == aggregator.Counter {
		seed = s.rules.counterSeed
	} else {
		kind = aggregator.Histogram
	}
	id := string('0'+rune(kind)) + "\xff" + name // no name on the wire begins so
	for _, l := range kept {
		id += "\xff" + l.Name + "\xff" + l.Value
	}
	g := o.groups[id]
	if g == nil && len(o.groups) < maxGroups {
		g = &group{key: maphash.String(seed, id), kind: kind, name: name, labels: append(kept, aggregator.Label{Name: overflowLabel, Value: "true"})}
		for j := range g.labels { // they point into nothing that is used again
			g.labels[j] = aggregator.Label{Name: strings.Clone(g.labels[j].Name), Value: strings.Clone(g.labels[j].Value)}
		}
		o.groups[id] = g
		o.order = append(o.order, g)
	}
	return g
}

// turn goes on to the next flush: what has been added up is whole.
func (o *overflow) turn(limit int) {
	for _, g := range o.order {
		g.ready.add(g.next.value, g.next.count, g.next.buckets)
		g.total += g.next.value
		g.due, g.came = g.due || g.came, false
		g.next = sum{buckets: g.next.buckets[:0]}
	}
	o.turned = o.flush
	if o.flush-o.pruned < forgotten/5 && o.pruned <= o.flush {
		return
	}
	o.pruned = o.flush
	maps.DeleteFunc(o.own, func(_ uint64, at int64) bool { return len(o.own) >= limit && at < o.flush-forgotten })
	maps.DeleteFunc(o.shared, func(_ uint64, sh *sharer) bool { return sh.at < o.flush-forgotten })
}

// add adds a sample to the flush that comes in.
func (g *group) add(sample *aggregator.Sample, buckets []aggregator.Bucket, increase float64) {
	g.next.add(increase, sample.Count, buckets)
	g.came = true
}

// send appends what is whole of a group to the batch.
func (s *scan) send(g *group, nth int) {
	sample := aggregator.Sample{Key: g.key, Timestamp: s.batch.Timestamp, Kind: g.kind, Value: g.ready.value}
	switch {
	case g.kind == aggregator.Histogram:
		sample.Count, sample.First = g.ready.count, uint32(len(s.batch.Buckets))
		s.batch.Buckets = append(s.batch.Buckets, g.ready.buckets...)
		sample.Last = uint32(len(s.batch.Buckets))
	case !s.rules.deltas:
		sample.Value = g.total
	}
	g.ready = sum{buckets: g.ready.buckets[:0]}
	s.batch.Samples = append(s.batch.Samples, sample)
	s.origins = append(s.origins, origin{kind: g.kind, group: uint32(nth + 1)})
}

// add adds an interval up. Bounds are the same for all histograms of a metric; where they are not,
// each count goes to the next bound.
func (s *sum) add(value float64, count uint64, buckets []aggregator.Bucket) {
	s.value += value
	s.count += count
	if len(s.buckets) == 0 {
		s.buckets = append(s.buckets, buckets...)
		return
	}
	below, j := uint64(0), 0
	for i := range s.buckets {
		for j < len(buckets) && buckets[j].UpperBound <= s.buckets[i].UpperBound {
			below = buckets[j].Count
			j++
		}
		s.buckets[i].Count += below
	}
}
