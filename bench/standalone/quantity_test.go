package standalone

import "testing"

func TestQuantityReadsSuffixes(t *testing.T) {
	for in, want := range map[string]float64{"10056m": 10.056, "0": 0, "12k": 12000, "240": 240, "1500u": 0.0015} {
		got, err := Quantity(in)
		if err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "12mk", "x1", "1Ki"} {
		if got, err := Quantity(in); err == nil {
			t.Errorf("%q: got %v, want an error", in, got)
		}
	}
}
