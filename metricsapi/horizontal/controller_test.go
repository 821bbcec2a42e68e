package horizontal

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// table is what the real controller decided; bench/lab/controlplane/hpa writes it and holds it to
// the controller.
var table = flag.String("table", "testdata/controller.jsonl.gz", "decisions of the real controller: JSON lines")

// history is a line of the table: an HPA and the looks that a controller took at it, from the
// controller's start on.
type history struct {
	Tolerance        float64
	DownscaleSeconds int
	Spec             *autoscalingv2.HorizontalPodAutoscalerSpec
	Looks            []struct {
		Milliseconds              int64 `json:"ms"`
		Spec, Status, Pods, Ready int32
		Milli                     []*int64
		Replicas                  int32 // the scale's spec.replicas after the look
	}
}

// TestDecidesAsTheController compares thousands of looks at random HPAs with what the real
// controller made of them.
func TestDecidesAsTheController(t *testing.T) {
	zipped, err := os.ReadFile(*table)
	if err != nil {
		t.Fatal(err)
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(zipped))
	if err != nil {
		t.Fatal(err)
	}
	lines := json.NewDecoder(unzipped)
	hpas, looks, wrong := 0, 0, 0
	for {
		var h history
		if err := lines.Decode(&h); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		hpas++
		settings := Settings{Tolerance: h.Tolerance, DownscaleStabilization: time.Duration(h.DownscaleSeconds) * time.Second}
		var past Past
		for i, l := range h.Looks {
			looks++
			at := time.UnixMilli(l.Milliseconds)
			target := Target{Spec: l.Spec, Status: l.Status, Pods: l.Pods, Ready: l.Ready}
			readings := make([]Reading, len(l.Milli))
			for j, v := range l.Milli {
				if v != nil {
					readings[j] = Reading{Milli: *v, Known: true}
				}
			}
			look := settings.Look(h.Spec, target, readings, &past, at)
			d := look.Decision
			if bound := d.Computed && d.Replicas != look.Stabilized; bound != (look.Bound != BoundNone) && d.Computed {
				t.Fatalf("HPA %d, look %d: %+v says that %q bounds it", hpas, i, d, look.Bound)
			}
			if d.Replicas != l.Replicas {
				if wrong++; wrong <= 5 {
					line, _ := json.Marshal(h) // it has just been read from JSON
					t.Errorf("HPA %d, look %d: %+v, and the controller decides %d\n%s", hpas, i, d, l.Replicas, line)
				}
				break
			}
			past.Note(settings, h.Spec, target, d, at)
		}
	}
	if hpas < 1000 || looks < 5000 {
		t.Errorf("only %d HPAs and %d looks in the table", hpas, looks)
	}
	if wrong > 0 {
		t.Errorf("%d of %d HPAs decided otherwise", wrong, hpas)
	}
}
