package load

import (
	"math"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/google/go-cmp/cmp"
)

func seconds(n float64) metav1.Duration {
	return metav1.Duration{Duration: time.Duration(n * float64(time.Second))}
}

func TestArrivalsCountIsTheIntegralOfTheRate(t *testing.T) {
	for name, test := range map[string]struct {
		profile Profile
		want    int
	}{
		"a constant rate":                     {Profile{{For: seconds(10), RPS: 18}}, 180},
		"a pause in between":                  {Profile{{For: seconds(5), RPS: 2}, {For: seconds(5)}, {For: seconds(5), RPS: 2}}, 20},
		"a ramp up":                           {Profile{{For: seconds(10), From: 0, To: 60}}, 300},
		"a ramp down":                         {Profile{{For: seconds(10), From: 60, To: 0}}, 300},
		"parts of a request add up":           {Profile{{For: seconds(1), RPS: 0.5}, {For: seconds(1), RPS: 0.5}}, 1},
		"what hey sends is its own":           {Profile{{For: seconds(10), Hey: &Hey{Workers: 2, Rate: 10}}, {For: seconds(5), RPS: 2}}, 10},
		"no load":                             {Profile{{For: seconds(10)}}, 0},
		"a rate that is no divisor of 1 s":    {Profile{{For: seconds(60), RPS: 7}}, 420},
		"a step that does not lose a request": {Profile{{For: seconds(1.25), RPS: 2}, {For: seconds(1.25), RPS: 58}}, 75},
	} {
		t.Run(name, func(t *testing.T) {
			var times []time.Duration
			test.profile.Arrivals(func(at time.Duration) bool { times = append(times, at); return true })
			if len(times) != test.want {
				t.Errorf("got %d requests, want %d", len(times), test.want)
			}
			for i := 1; i < len(times); i++ {
				if times[i] < times[i-1] {
					t.Fatalf("request %d comes at %s, before its predecessor at %s", i, times[i], times[i-1])
				}
			}
			if n := len(times); n > 0 && times[n-1] > test.profile.Duration() {
				t.Errorf("the last request comes at %s, after the end", times[n-1])
			}
		})
	}
}

func TestRateFollowsTheSegments(t *testing.T) {
	p := Profile{{For: seconds(10), RPS: 2}, {For: seconds(10), From: 10, To: 30}}
	for at, want := range map[float64]float64{-1: 0, 0: 2, 9.9: 2, 10: 10, 15: 20, 20: 0} {
		if got := p.Rate(time.Duration(at * float64(time.Second))); math.Abs(got-want) > 1e-9 {
			t.Errorf("at %v s: got %v, want %v", at, got, want)
		}
	}
	want := []Change{{0, 0, 2}, {10 * time.Second, 2, 10}}
	if diff := cmp.Diff(want, p.Changes()); diff != "" {
		t.Error(diff)
	}
}

func TestValidateNamesTheSegment(t *testing.T) {
	for name, p := range map[string]Profile{
		"nothing":       nil,
		"no length":     {{RPS: 1}},
		"negative rate": {{For: seconds(1), RPS: -1}},
		"two rates":     {{For: seconds(1), RPS: 1, To: 2}},
	} {
		if p.Validate() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
