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

// ErrTooMuch is of a query that took more samples or time than one may, or has given way several
// times in a row, and of each evaluation of it in the next minutes, which is refused (enginePause).
var ErrTooMuch = errors.New("too much: " + engineBetterForm)

const (
	engineTimeout     = 3 * time.Second // below that of a request, which may have waited besides
	enginePause       = 2 * time.Minute
	engineYields      = 3                      // so often one may give way without an answer between: others' load, too, makes a query slow
	engineQuick       = 100 * time.Millisecond // a query that took less does not wait for all that are slow (turns)
	engineSampleBytes = 16                     // as the engine counts: a histogram is so many samples as it has times so many bytes

	// An eighth of the memory limit is the engine's, shared by the queries that run at a time.
	// Prometheus' default is the most: 800 MB.
	enginePart         = 8
	engineMostSamples  = 50_000_000
	engineLeastSamples = 1_000_000
)

// engineBetterForm is what somebody whose query is too much can do.
const engineBetterForm = "name a metric and a namespace in each of its selectors, or take a shorter range"

// engineSamples is how many samples a query may hold where so many run at a time and the process
// may take so many bytes, math.MaxInt64 where it has no limit.
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
		// The step of a subquery that gives none, as Prometheus' default evaluation_interval;
		// without it the engine panics.
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
		return nil, fmt.Errorf("%w, which are more than %d", r.Err, e.maxSamples)
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

// byEngine answers the expression by the engine, when it is its author's turn. One that is too much
// is not tried again for a while: it would take the same again, from all others, and answer
// nothing.
func (q *Query) byEngine(ctx context.Context, at int64) ([]Value, error) {
	if err := q.paused(); err != nil {
		return nil, err
	}
	p := pace(q.pace.Load())
	for {
		values, took, gaveWay, err := q.inTurn(ctx, p, at)
		if took == 0 {
			return nil, err
		}
		if gaveWay && p != paceSlow { // it is not what it was taken for
			p = paceSlow
			continue
		}
		return values, q.ran(gaveWay, err, took)
	}
}

// inTurn evaluates the expression in a turn of its author's. took is 0 where it was not begun.
func (q *Query) inTurn(ctx context.Context, p pace, at int64) (values []Value, took time.Duration, gaveWay bool, err error) {
	e := q.store.engine
	in, end, err := e.turns.wait(ctx, q.author, p)
	if err != nil {
		return nil, 0, false, fmt.Errorf("it waited for other queries that are not compiled: %w", err)
	}
	defer end()                        // after a panic too: others wait for it
	if err := q.paused(); err != nil { // since it has waited
		return nil, 0, false, err
	}
	began := time.Now()
	values, err = e.instant(in, queryable{q.store, q.reads}, q.expr, at)
	gaveWay = err != nil && errors.Is(context.Cause(in), errGaveWay)
	return values, max(time.Since(began), 1), gaveWay, err
}

// ran notes how it went in a turn that was its own, or gave way. It returns the error of the query,
// which is an ErrTooMuch from now on where it was too much.
func (q *Query) ran(gaveWay bool, err error, took time.Duration) error {
	p := paceSlow
	if err == nil && (took < engineQuick || pace(q.pace.Load()) == paceQuick && took < leastTurn) {
		p = paceQuick
	}
	q.pace.Store(int32(p))
	switch {
	case err == nil:
		q.yields.Store(0)
		return nil
	case gaveWay && q.yields.Add(1) < engineYields:
		return fmt.Errorf("%w: %s", errGaveWay, engineBetterForm)
	case gaveWay:
		err = errGaveWay
	case !q.store.engine.tooMuch(err, took):
		return err
	}
	until := time.Now().Add(enginePause)
	q.tooMuchUntil.Store(&until)
	return fmt.Errorf("%w: %w", err, ErrTooMuch)
}

// paused says that the query is not tried again yet, nil if it is.
func (q *Query) paused() error {
	if !q.TooMuch() {
		return nil
	}
	return fmt.Errorf("%w; it is not tried again before %s UTC", ErrTooMuch, q.tooMuchUntil.Load().UTC().Format(time.TimeOnly))
}

// tooMuch says whether the query itself ran into a limit: a request may end for having waited, too.
func (e *engine) tooMuch(err error, ran time.Duration) bool {
	samples, timeout := promql.ErrTooManySamples(""), promql.ErrQueryTimeout("")
	return errors.As(err, &samples) || ran >= engineTimeout && (errors.As(err, &timeout) || errors.Is(err, context.DeadlineExceeded))
}

// TooMuch says whether the query is refused for now because it took more samples or time than one
// may.
func (q *Query) TooMuch() bool {
	until := q.tooMuchUntil.Load()
	return until != nil && time.Now().Before(*until)
}
