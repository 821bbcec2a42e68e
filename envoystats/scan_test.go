package envoystats

import (
	"path/filepath"
	"testing"
)

func TestScanReadsWhatTheGeneratedDecoderReads(t *testing.T) {
	for _, file := range captures(t) {
		for _, keep := range [][]string{nil, {""}, {"probe", "cluster."}} {
			c := Config{Keep: keep}
			s, keys, names := newScan(c), new(seen), newSeries()
			samples := 0
			for i, b := range messages(t, file) {
				want, err := oracle(c, b)
				if err != nil {
					t.Fatal(err)
				}
				got, err := scanned(s, keys, b)
				if err != nil {
					t.Fatalf("%s message %d, keep %q: %v", file, i, keep, err)
				}
				if diff := names.diff(want, got); diff != "" {
					t.Errorf("%s message %d, keep %q: want -, got +\n%s", file, i, keep, diff)
				}
				if len(got.Refused) > 0 {
					t.Errorf("%s message %d, keep %q: Envoy's own samples refused: %v", file, i, keep, got.Refused)
				}
				samples += len(got.Samples)
			}
			if samples == 0 && !(keep == nil && filepath.Base(filepath.Dir(file)) == "p-probe") {
				t.Errorf("%s, keep %q: no samples", file, keep)
			}
		}
	}
}
