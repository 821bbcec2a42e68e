package aggregator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/prometheus/prometheus/promql"
)

// engine is Prometheus' own, for any expression that is not compiled.
type engine struct {
	promql     *promql.Engine
	maxSamples int // of one query
	turns      *turns
}

const (
	engineTimeout     = 10 * time.Second
	engineSampleBytes = 16 // as the engine counts: a histogram is so many samples as it has times so many bytes

	// An eighth of the memory limit is the engine's, shared by the queries that run at a time. Prometheus' default is the most: 800 MB.
	enginePart         = 8
	engineMostSamples  = 50_000_000
	engineLeastSamples = 1_000_000
)

// engineBetterForm is what somebody whose query is too much can do.
const engineBetterForm = "name a metric and a namespace in each of its selectors, or take a shorter range"

// engineSamples is how many samples a query may hold where so many run at a time and the process may take so many bytes, math.MaxInt64
// where it has no limit.
func engineSamples(limit int64, atATime int) int {
	return int(min(max(limit/enginePart/engineSampleBytes/int64(atATime), engineLeastSamples), engineMostSamples))
}

func newEngine() *engine {
	atATime := max(1, runtime.GOMAXPROCS(0)/2)                  // the rest is for ingest and for queries that are compiled
	samples := engineSamples(debug.SetMemoryLimit(-1), atATime) // asks only
	return &engine{maxSamples: samples, turns: newTurns(atATime), promql: promql.NewEngine(promql.EngineOpts{
		Logger:               slog.New(slog.DiscardHandler), // errors are returned, and it has nothing else to say
		MaxSamples:           samples,
		Timeout:              engineTimeout,
		EnableAtModifier:     true,
		EnableNegativeOffset: true,
		// The step of a subquery that gives none, as Prometheus' default evaluation_interval; without it the engine panics.
		NoStepSubqueryIntervalFn: func(int64) int64 { return time.Minute.Milliseconds() },
	})}
}

func (e *engine) instant(ctx context.Context, over queryable, expr string, at int64) ([]Value, error) {
	q, err := e.promql.NewInstantQuery(ctx, over, nil, expr, time.UnixMilli(at))
	if err != nil {
		return nil, err
	}
	defer q.Close()
	r := q.Exec(ctx)
	if many := promql.ErrTooManySamples(""); errors.As(r.Err, &many) {
		return nil, fmt.Errorf("%w, which are more than %d: %s", r.Err, e.maxSamples, engineBetterForm)
	}
	if r.Err != nil {
		return nil, r.Err
	}
	switch v := r.Value.(type) {
	case promql.Scalar:
		return []Value{{V: v.V}}, nil
	case promql.Vector:
		values := make([]Value, 0, len(v))
		for _, s := range v {
			if s.H != nil {
				return nil, fmt.Errorf("the result is a histogram; take histogram_quantile, histogram_avg or histogram_sum of it")
			}
			values = append(values, Value{s.Metric.Copy(), s.F})
		}
		return values, nil
	default:
		return nil, fmt.Errorf("the result is a %s", r.Value.Type())
	}
}

// byEngine answers the expression by the engine, when it is its author's turn.
func (q *Query) byEngine(ctx context.Context, at int64) ([]Value, error) {
	e := q.store.engine
	end, err := e.turns.wait(ctx, q.author)
	if err != nil {
		return nil, fmt.Errorf("it waited for other queries that are not compiled: %w", err)
	}
	defer end()
	return e.instant(ctx, queryable{q.store}, q.expr, at)
}
