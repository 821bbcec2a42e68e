package prometheus

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSamplesAreThoseOfEachSeries(t *testing.T) {
	for name, test := range map[string]struct {
		body string
		want [][]float64
	}{
		"an instant vector": {
			`{"data":{"result":[{"metric":{},"value":[1,"2.5"]},{"metric":{},"value":[1,"-3"]}]}}`,
			[][]float64{{2.5}, {-3}},
		},
		"a range vector": {`{"data":{"result":[{"metric":{},"values":[[1,"1"],[2,"4"]]}]}}`, [][]float64{{1, 4}}},
		"nothing":        {`{"data":{"result":[]}}`, nil},
	} {
		got, err := parse([]byte(test.body))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for _, body := range []string{"", `{"data":{"result":[{"value":[1,"a lot"]}]}}`} {
		if got, err := parse([]byte(body)); err == nil {
			t.Errorf("%q: got %v, want an error", body, got)
		}
	}
}

func TestAlertsThatFireAreNamedOnce(t *testing.T) {
	got, err := firing([]byte(`{"data":{"alerts":[
		{"labels":{"alertname":"Late","pod":"b"},"state":"firing"},
		{"labels":{"alertname":"Down"},"state":"pending"},
		{"labels":{"alertname":"Absent"},"state":"firing"},
		{"labels":{"alertname":"Late","pod":"a"},"state":"firing"}]}}`))
	if diff := cmp.Diff([]string{"Absent", "Late"}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if got, err := firing([]byte("<html>")); err == nil {
		t.Errorf("got %v, want an error", got)
	}
}

func TestWhatIsNotPrometheusHasNoVersion(t *testing.T) {
	for _, binary := range []string{"/proc/self/exe", "prometheus_test.go", "missing"} {
		if version, err := Version(binary); err == nil {
			t.Errorf("%s: version %s", binary, version)
		}
	}
}
