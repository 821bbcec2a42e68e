package scenario

import (
	"testing"
	"time"
)

func TestBesideAnOracle(t *testing.T) {
	const s = time.Second
	good := func() Trace {
		return Trace{
			Min: 1, From: 10 * s, Asked: []Asked{{0, 1}},
			Samples: []Sample{{At: 5 * s, Desired: 3}, {At: 9 * s, Desired: 1}, {At: 60 * s, Desired: 6}, {At: 100 * s, Desired: 2}},
			Oracle: &Oracle{
				Target: 10, Answers: []Answered{{30 * s, 12}, {60 * s, 60}, {98 * s, 19.5}, {120 * s, 5}},
				Raises: []Asked{{40 * s, 4}, {45 * s, 6}}, Own: []Asked{{41 * s, 5}, {46 * s, 6}},
			},
		}
	}
	for name, tc := range map[string]struct {
		change func(*Trace)
		want   map[string]float64
	}{
		"as the oracle":             {func(*Trace) {}, map[string]float64{OracleRaises: 2, RaisesMissed: 0, RaisesLate: 1, DownsAlone: 0}},
		"one raise is missed":       {func(t *Trace) { t.Oracle.Own = t.Oracle.Own[:1] }, map[string]float64{RaisesMissed: 1, RaisesLate: 1}},
		"both are, so low is it":    {func(t *Trace) { t.Oracle.Own = []Asked{{41 * s, 3}} }, map[string]float64{RaisesMissed: 2}},
		"one of before is another":  {func(t *Trace) { t.Oracle.Own = []Asked{{s, 6}} }, map[string]float64{RaisesMissed: 2}},
		"later":                     {func(t *Trace) { t.Oracle.Own[1].At = 58 * s }, map[string]float64{RaisesMissed: 0, RaisesLate: 13}},
		"the HPA itself was first":  {func(t *Trace) { t.Oracle.Own, t.Asked = nil, []Asked{{0, 1}, {42 * s, 6}} }, map[string]float64{RaisesMissed: 0, RaisesLate: 2}},
		"no answer asks for so few": {func(t *Trace) { t.Oracle.Answers[2].Value = 20.1 }, map[string]float64{DownsAlone: 1}},
		"nor at that time":          {func(t *Trace) { t.Oracle.Answers[2].At = 80 * s }, map[string]float64{DownsAlone: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			trace := good()
			tc.change(&trace)
			got := map[string]float64{}
			for _, m := range Measures([]Trace{trace}) {
				got[m.Name] = m.Value
			}
			for measure, want := range tc.want {
				if got[measure] != want {
					t.Errorf("%s: got %v, want %v", measure, got[measure], want)
				}
			}
		})
	}
	if len(beside([]Trace{{}})) != 0 {
		t.Error("measures beside an oracle, and there was none")
	}
}
