package scenario

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWriteLeavesEveryResult(t *testing.T) {
	dir := t.TempDir()
	// The decision is never seen: +Inf, which JSON cannot hold.
	tr := trace(after(0, 1, 1), after(0, 1, 1))
	tr.Namespace = "test"
	run := Run{Traces: []Trace{tr}, HPASync: time.Second, Boot: 4300 * time.Millisecond}
	run.Judge()
	r := Report{Scenario: Scenario{Name: "story"}, Runs: []Run{run}, Date: time.Now()}
	if err := r.Write(dir, filepath.Join(dir, "seen")); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][2]string{
		{"lab-story.json", `"value": null`},
		{"lab-story.json", `control plane booted",
    "value": 4.3,
    "unit": "s",
    "goal": 10,
    "better": "lower"`},
		{"lab-story.md", "not seen"},
		{"lab-story.md", "| control plane booted | 4.3 s | at most 10 |"},
		{"seen/lab-story.csv", "1s,test,12.00,28,0.000,,3,1,1"},
		{"seen/lab-story.svg", "</svg>"},
	} {
		data, err := os.ReadFile(filepath.Join(dir, want[0]))
		if err != nil {
			t.Error(err)
		} else if !strings.Contains(string(data), want[1]) {
			t.Errorf("%s does not hold %q:\n%s", want[0], want[1], data)
		}
	}
}

func TestPathHoldsAValueUntilTheNextAndLeavesGaps(t *testing.T) {
	var samples []Sample
	for i, v := range []float64{1, 1, 2, math.NaN(), 3, 3} {
		samples = append(samples, Sample{At: time.Duration(i) * time.Second, Value: v})
	}
	got := path(samples, func(s Sample) (x, y float64) { return s.At.Seconds(), s.Value })
	if want := "M0.0 1.0H2.0V2.0H3.0M4.0 3.0H5.0"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// outside are the points of a picture that lie beyond its frame, and with a panel the points of
// paths beyond that.
func outside(t *testing.T, svg string) (out []string) {
	t.Helper()
	var width, height float64
	within := func(what string, x, y float64) {
		if !(x >= 0 && x <= width && y >= 0 && y <= height) {
			out = append(out, what+" at "+strconv.FormatFloat(x, 'f', 1, 64)+" "+strconv.FormatFloat(y, 'f', 1, 64))
		}
	}
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		text, number := map[string]string{}, map[string]float64{}
		for _, a := range e.Attr {
			text[a.Name.Local] = a.Value
			number[a.Name.Local], _ = strconv.ParseFloat(a.Value, 64) // not all are
		}
		switch e.Name.Local {
		case "svg":
			width, height = number["width"], number["height"]
		case "rect":
			if text["width"] != "100%" {
				within("rect", number["x"], number["y"])
				within("rect", number["x"]+number["width"], number["y"]+number["height"])
			}
		case "path":
			for _, p := range points(text["d"]) {
				within("path", p[0], p[1])
			}
		case "text":
			words, err := d.Token()
			if err != nil {
				t.Fatal(err)
			}
			content, _ := words.(xml.CharData)
			const letter = 0.56 // of the font's size: a sans-serif letter's width, on the average
			length := letter * max(12, number["font-size"]) * float64(len(content))
			from := number["x"] - length*map[string]float64{"end": 1, "middle": 0.5}[text["text-anchor"]]
			within("text "+string(content), from, number["y"]-10)
			within("text "+string(content), from+length, number["y"])
		}
	}
}

// points are those of a path of the commands that are used here.
func points(d string) (all [][2]float64) {
	x, y := 0.0, 0.0
	for _, m := range regexp.MustCompile(`([MHVhv])(-?[\d.]+|NaN|[+-]?Inf) ?(-?[\d.]+)?`).FindAllStringSubmatch(d, -1) {
		n, _ := strconv.ParseFloat(m[2], 64)
		switch m[1] {
		case "M":
			x = n
			y, _ = strconv.ParseFloat(m[3], 64)
		case "H":
			x = n
		case "V":
			y = n
		case "h":
			x += n
		case "v":
			y += n
		}
		all = append(all, [2]float64{x, y})
	}
	return all
}

// A lane whose load has ended waits for the others, and what it does then has no place in the
// picture.
func TestARunIsDrawnInsideItsFrame(t *testing.T) {
	tr := trace(after(14, 1, 3), after(16, 1, 3))
	tr.Namespace = "test-10"
	for i := range tr.Samples {
		tr.Samples[i].Value = float64(i)
	}
	for i := 41; i < 80; i++ {
		tr.Samples = append(tr.Samples, Sample{At: time.Duration(i) * time.Second, Value: 1000, Desired: 50, Ready: 60})
	}
	tr.Samples[20].Value = math.NaN()
	svg := Report{Scenario: Scenario{Name: "step-act-1s"}, Runs: []Run{{Traces: []Trace{tr, tr}, HPASync: time.Minute}}}.svg()
	if out := outside(t, svg); out != nil {
		t.Errorf("beyond the picture: %q", out)
	}
	curves := regexp.MustCompile(`<path d="(M[^h"]*)"`).FindAllStringSubmatch(svg, -1)
	if len(curves) != 10 {
		t.Errorf("%d curves, want 5 of each lane", len(curves))
	}
	for i, c := range curves {
		top := marginTop + float64(i/5)*(panelHeight+panelGap)
		for _, p := range points(c[1]) {
			if p[0] < marginLeft || p[0] > marginLeft+panelWidth || p[1] < top || p[1] > top+panelHeight {
				t.Errorf("curve %d leaves its frame at %v", i, p)
			}
		}
		if last := points(c[1]); last[len(last)-1][0] != marginLeft+panelWidth {
			t.Errorf("curve %d ends at %v, before the load", i, last[len(last)-1])
		}
	}
}

// results reads what a comparison left, as it is in the project, and the scenario that it is drawn
// of.
func results(t *testing.T) (Scenario, []Row) {
	t.Helper()
	data, err := os.ReadFile("../../results/versus.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []Row
	if err := json.Unmarshal(data, &rows); err != nil {
		t.Fatal(err)
	}
	s, err := Load("../scenarios/step.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return s, rows
}

func TestThePlotShownIsDrawnFromTheResultsThatAreKept(t *testing.T) {
	want, err := StepPlot(results(t))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../results/versus.svg")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("versus.svg is not drawn from versus.json: `make plot` draws it")
	}
	if out := outside(t, want); out != nil {
		t.Errorf("beyond the picture: %q", out)
	}
}

func TestBarsAreOfTheirScenarioAndTheFastestFirst(t *testing.T) {
	v := func(x float64) *float64 { return &x }
	rows := []Row{
		{Name: "step, a: " + Enough, Value: v(50)},
		{Name: "step, a: " + EnoughWorst, Value: v(60)},
		{Name: "step, a: " + FirstRaise, Value: v(18)},
		{Name: "step, never: " + Enough},
		{Name: "step, never: " + EnoughWorst},
		{Name: "step, never: " + FirstRaise, Value: v(21)},
		{Name: "step, b: " + Enough, Value: v(6)},
		{Name: "step, b: " + EnoughWorst, Value: v(9)},
		{Name: "step, b: " + FirstRaise, Value: v(1)},
		{Name: "sawtooth, b: " + Enough, Value: v(1)},
	}
	want := []bar{{"b", 6, 9, 1}, {"a", 50, 60, 18}, {"never", math.Inf(1), math.Inf(1), 21}}
	if diff := cmp.Diff(want, barsOf("step", rows), cmp.AllowUnexported(bar{})); diff != "" {
		t.Error(diff)
	}
	s, _ := results(t)
	svg, err := StepPlot(s, rows)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"From 2 to 60 requests a second", "the 6 replicas", "6.0 s (slowest 9.0 s)", "not every time in 90 s"} {
		if !strings.Contains(svg, want) {
			t.Errorf("the plot does not say %q", want)
		}
	}
	if _, err := StepPlot(s, rows[9:]); err == nil {
		t.Error("a comparison without the scenario is drawn")
	}
}

func TestWhatIsMissedIsNamed(t *testing.T) {
	goal := 3.0
	got := Missed([]Measure{
		{Name: "few", Value: 3, Unit: "count", Goal: &goal, Better: "lower"},
		{Name: "too many", Value: 4, Unit: "count", Goal: &goal, Better: "lower"},
		{Name: "late", Value: math.Inf(1), Unit: "s", Goal: &goal, Better: "lower"},
		{Name: "too few", Value: 2, Unit: "count", Goal: &goal, Better: "higher"},
		{Name: "told", Value: 9, Unit: "count"},
	})
	if diff := cmp.Diff([]string{"too many: 4", "late: not seen every time", "too few: 2"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
