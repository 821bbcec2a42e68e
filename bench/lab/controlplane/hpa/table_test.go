// Package hpa makes the real HPA controller of Kubernetes decide over random HPAs and targets, and
// holds the table that metricsapi/horizontal is tested against to what it says. Everything around
// the controller is fake and in memory, time is testing/synctest's. The package knows the
// controller's constructor and its clients; nothing of meshpulse but where the table is.
package hpa

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

var (
	update = flag.Bool("update", false, "write the table anew")
	seed   = flag.Uint64("seed", 1, "of the random HPAs")
	many   = flag.Int("hpas", 500, "HPAs for each of the controllers")
	path   = flag.String("table", "../../../../metricsapi/horizontal/testdata/controller.jsonl.gz", "the table: JSON lines")
)

// history is a line of the table: an HPA and the looks that a controller took at it, from the
// controller's start on.
type history struct {
	// Tolerance and DownscaleSeconds are the controller's flags.
	Tolerance        float64 `json:"tolerance"`
	DownscaleSeconds int     `json:"downscaleSeconds"`
	// Spec is as a user wrote it: the API server's defaults are not in it.
	Spec  *autoscalingv2.HorizontalPodAutoscalerSpec `json:"spec"`
	Looks []look                                     `json:"looks"`
}

// look is what the controller saw and what it made of it.
type look struct {
	// Milliseconds since the controller's start.
	Milliseconds int64 `json:"ms"`
	// Spec and Status are the scale's spec.replicas and status.replicas.
	Spec   int32 `json:"spec"`
	Status int32 `json:"status"`
	Pods   int32 `json:"pods"`
	Ready  int32 `json:"ready"`
	// Milli are the values of the HPA's metrics, null where the metrics API gave an error.
	Milli []*int64 `json:"milli"`
	// Replicas are the scale's spec.replicas after the look.
	Replicas int32 `json:"replicas"`
}

// TestTableIsWhatTheControllerSays fails where the real controller decides otherwise than the table
// says.
func TestTableIsWhatTheControllerSays(t *testing.T) {
	said := table(t)
	if *update {
		if err := os.WriteFile(*path, compress(t, said), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	held := bytes.Split(uncompress(t, *path), []byte("\n"))
	lines := bytes.Split(said, []byte("\n"))
	if len(held) != len(lines) {
		t.Fatalf("the table has %d lines, the controller gives %d: refresh it with -update", len(held), len(lines))
	}
	different := 0
	for i, line := range lines {
		if bytes.Equal(line, held[i]) {
			continue
		}
		if different++; different <= 3 {
			t.Errorf("line %d: the table has\n%s\nand the controller says\n%s", i+1, held[i], line)
		}
	}
	if different > 0 {
		t.Errorf("%d of %d lines differ: refresh the table with -update if the controller is right", different, len(lines))
	}
}

// table is what the controller says, as JSON lines.
func table(t *testing.T) []byte {
	var lines bytes.Buffer
	encoder := json.NewEncoder(&lines)
	up, down, still := 0, 0, 0
	for i, c := range []controller{
		{tolerance: 0.1, downscale: 5 * time.Minute, sync: 15 * time.Second, looks: 8},
		{tolerance: 0.1, downscale: time.Minute, sync: 15 * time.Second, looks: 14},
		{tolerance: 0, downscale: 15 * time.Second, sync: 5 * time.Second, looks: 10},
		{tolerance: 0.25, downscale: 0, sync: time.Minute, looks: 8},
	} {
		worlds := make([]*world, *many)
		synctest.Test(t, func(t *testing.T) {
			for j := range worlds {
				worlds[j] = newWorld(t, fmt.Sprintf("n%d", j), *seed, uint64(i), uint64(j))
			}
			c.run(t, worlds)
		})
		for _, w := range worlds {
			if len(w.looks) < c.looks-1 {
				t.Fatalf("%s: %d looks of %d", w.namespace, len(w.looks), c.looks)
			}
			for _, l := range w.looks {
				switch {
				case l.Replicas > l.Spec:
					up++
				case l.Replicas < l.Spec:
					down++
				default:
					still++
				}
			}
			h := history{c.tolerance, int(c.downscale.Seconds()), &w.written, w.looks}
			if err := encoder.Encode(h); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d looks raised, %d lowered, %d left the replicas", up, down, still)
	if all := up + down + still; up < all/8 || down < all/20 {
		t.Error("too few of the random looks change anything to tell much")
	}
	return lines.Bytes()
}

func compress(t *testing.T, b []byte) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func uncompress(t *testing.T, path string) []byte {
	zipped, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(zipped))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
