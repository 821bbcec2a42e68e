package aggregator

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/util/teststorage"
	"github.com/prometheus/prometheus/util/testutil"
)

// TestPrometheusOwnScripts runs the scripts with which Prometheus tests PromQL, over the rings.
// What a script loads goes to Prometheus' own storage; what an expression selects of it comes from
// rings that were filled through Stream.Commit, wherever rings can hold it: series that do not fall
// (a ring holds counters) and have no staleness markers or native histograms. The rest is answered
// by Prometheus' storage, so that scripts run as they are.
func TestPrometheusOwnScripts(t *testing.T) {
	var rings, others int
	promqltest.RunBuiltinTestsWithStorage(fitting{t}, promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery),
		func(t testutil.T) storage.Storage {
			return &scriptStorage{TestStorage: teststorage.New(t), rings: &rings, others: &others}
		})
	t.Logf("%d selections came from rings, %d did not fit", rings, others)
	if rings < 1000 {
		t.Errorf("only %d selections came from rings", rings)
	}
}

// fitting leaves out the script of which nothing fits.
type fitting struct{ *testing.T }

func (f fitting) Run(name string, run func(*testing.T)) bool {
	return strings.HasSuffix(name, "native_histograms.test") || f.T.Run(name, run)
}

// scriptStorage is the storage of one script. Every series has a pod of its own in the rings, so
// each has rows where it has samples and nothing is carried forward.
type scriptStorage struct {
	*teststorage.TestStorage
	rings, others *int

	store *Store          // nil after a load
	fits  map[string]bool // by labels
}

func (s *scriptStorage) Appender(ctx context.Context) storage.Appender {
	s.store = nil
	return s.TestStorage.Appender(ctx)
}

func (s *scriptStorage) Querier(mint, maxt int64) (storage.Querier, error) {
	q, err := s.TestStorage.Querier(mint, maxt)
	return scriptQuerier{q, s}, err
}

type scriptQuerier struct {
	storage.Querier
	of *scriptStorage
}

func (q scriptQuerier) Select(ctx context.Context, _ bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	ok, err := q.of.ringsHold(ctx, ms)
	if err != nil {
		return storage.ErrSeriesSet(err)
	}
	if !ok {
		*q.of.others++
		return q.Querier.Select(ctx, true, hints, ms...)
	}
	*q.of.rings++
	room := math.MaxInt
	rings := querier{queryable{q.of.store, nil}, math.MinInt64 / 2, math.MaxInt64 / 2, &room}
	return withoutPods{rings.Select(ctx, true, hints, ms...)}
}

// ringsHold reports whether there is something to select and all of it is in the rings.
func (s *scriptStorage) ringsHold(ctx context.Context, ms []*labels.Matcher) (bool, error) {
	all, err := s.TestStorage.Querier(math.MinInt64, math.MaxInt64)
	if err != nil {
		return false, err
	}
	defer func() { _ = all.Close() }()
	if s.store == nil {
		if err := s.fill(all.Select(ctx, true, nil, labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".*"))); err != nil {
			return false, err
		}
	}
	for _, m := range ms {
		if m.Name == labelPod || m.Name == labelNamespace || // there they are the reporting pod's
			m != canonicalLE(m) && m.Value != canonicalLE(m).Value { // there 0.2 and .2 are one bound
			return false, nil
		}
	}
	set, n := all.Select(ctx, true, nil, ms...), 0
	for set.Next() {
		if !s.fits[set.At().Labels().String()] {
			return false, nil
		}
		n++
	}
	return n > 0, set.Err()
}

// fill commits the series that fit to a new store.
func (s *scriptStorage) fill(set storage.SeriesSet) error {
	const ever = 100 * 24 * time.Hour
	store, err := New(Config{Retention: ever, MaxRetention: ever})
	if err != nil {
		return err
	}
	store.started = time.UnixMilli(0) // when scripts start
	s.store, s.fits = store, map[string]bool{}
	for set.Next() {
		ls := set.At().Labels()
		ps := samplesOf(set.At())
		if ps == nil || ls.Get(model.MetricNameLabel) == "" || ls.Has(labelPod) || ls.Has(labelNamespace) {
			continue
		}
		s.fits[ls.String()] = true
		st := store.Connect(Pod{Name: fmt.Sprint(len(s.fits)), FlushInterval: ever / 8})
		for _, p := range ps {
			b := &Batch{Timestamp: p.t, Samples: []Sample{{Key: 1, Timestamp: p.t, Kind: Counter, Value: p.v}}}
			if err := st.Commit(time.UnixMilli(p.t), b, described{ls}); err != nil {
				return err
			}
		}
		st.Close()
		st.table.flush.Store(ever.Milliseconds()) // stale by Prometheus' lookback alone
	}
	return set.Err()
}

// samplesOf returns the samples of a series that a counter's ring can hold, nil if it cannot.
func samplesOf(s storage.Series) []point {
	var ps []point
	it := s.Iterator(nil)
	for k := it.Next(); k != chunkenc.ValNone; k = it.Next() {
		if k != chunkenc.ValFloat {
			return nil
		}
		t, v := it.At()
		if math.IsNaN(v) || math.IsInf(v, 0) || len(ps) > 0 && (v < ps[len(ps)-1].v || math.IsInf(v-ps[len(ps)-1].v, 0)) {
			return nil
		}
		ps = append(ps, point{t, v})
	}
	return ps
}

// withoutPods takes the labels of the reporting pod away: the scripts know none.
type withoutPods struct{ storage.SeriesSet }

func (w withoutPods) At() storage.Series { return withoutPod{w.SeriesSet.At()} }

type withoutPod struct{ storage.Series }

func (w withoutPod) Labels() labels.Labels {
	return labels.NewBuilder(w.Series.Labels()).Del(labelPod, labelNamespace).Labels()
}
