package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func looked(second int64, here, there float64, current int32) look {
	return look{at: time.Unix(second, 0).UTC(), here: &here, there: &there, replicas: current}
}

func TestTallyIsTheControllersArithmetic(t *testing.T) {
	one := 1.0
	all := []look{
		looked(1, 10, 9.5, 1), // alike
		looked(2, 60, 20, 1),  // 6 and 2
		looked(3, 21, 19, 2),  // within the controller's tolerance: nobody asks for others
		looked(4, 0, 0, 3),    // the least, both
		looked(5, 200, 110, 4),
		{at: time.Unix(6, 0), here: &one},
		{at: time.Unix(7, 0), there: &one},
		looked(8, 1000, 1, 1), // after what is asked for
	}
	limits := goal{each: 10_000, least: 1, most: 10}
	got := tally(all, limits, time.Unix(7, 0))
	want := told{
		Compared: 5, Agreed: 3, Decisions: 1, OursMissing: 1, TheirsMissing: 1,
		Newest:  toldLook{At: time.Unix(7, 0).UTC(), There: &one},
		Largest: &toldLook{At: time.Unix(2, 0).UTC(), Here: new(60.0), There: new(20.0), HereAsks: 6, ThereAsks: 2},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsNotAsTheLabSawItIsTold(t *testing.T) {
	all := []look{looked(1, 10, 10, 1), looked(2, 60, 20, 1), looked(3, 60, 59, 1)}
	limits := goal{each: 10_000, least: 1, most: 10}
	right := func() *told {
		s := tally(all, limits, time.Unix(3, 0))
		return &s
	}
	for name, test := range map[string]struct {
		change func(*told)
		counts int
		apart  bool // the comparison with the largest difference is another
	}{
		"as it was":                  {change: func(*told) {}},
		"one that was not":           {change: func(s *told) { s.Compared++ }, counts: 1},
		"one that did not agree":     {change: func(s *told) { s.Agreed++; s.Decisions-- }, counts: 2},
		"one that is missing":        {change: func(s *told) { s.OursMissing = 3 }, counts: 3},
		"a value that was not said":  {change: func(s *told) { s.Largest.There = new(20.01) }, apart: true},
		"a value here that was else": {change: func(s *told) { s.Largest.Here = new(66.0) }, apart: true},
		"here a flush later":         {change: func(s *told) { s.Largest.Here, s.Largest.HereAsks = new(60.5), 7 }},
		"another time":               {change: func(s *told) { s.Largest.At = time.Unix(1, 0) }, apart: true},
		"a time that was not":        {change: func(s *told) { s.Largest.At = time.Unix(2, 1) }, apart: true},
		"other replicas":             {change: func(s *told) { s.Largest.ThereAsks++ }, apart: true},
		"none":                       {change: func(s *told) { s.Largest = nil }, apart: true},
	} {
		t.Run(name, func(t *testing.T) {
			reported := right()
			test.change(reported)
			counts, err := differs(all, limits, reported)
			if counts != test.counts || (err != nil) != test.apart {
				t.Errorf("%d counts, %v", counts, err)
			}
		})
	}
}
