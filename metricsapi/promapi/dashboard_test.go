package promapi

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
)

// The dashboard whose data source is this API has values in every panel, and finds what its
// variables offer.
func TestTheDashboardOfHPAsHasValues(t *testing.T) {
	content, err := os.ReadFile("../../manifests/components/alerts/dashboards/hpa.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Templating struct {
			List []struct{ Name, Type, Definition string }
		}
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	m := newMesh(t)
	api, server := m.serve(t)
	chosen := strings.NewReplacer("$namespace", "test", "$workload", "podinfo")
	values := regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)
	for _, v := range dashboard.Templating.List {
		if v.Type != "query" {
			continue
		}
		of := values.FindStringSubmatch(chosen.Replace(v.Definition))
		if of == nil {
			t.Fatalf("variable %s asks %q", v.Name, v.Definition)
		}
		reply, err := http.Get(server.URL + "/api/v1/label/" + of[2] + "/values?match[]=" + url.QueryEscape(of[1]))
		if err != nil {
			t.Fatal(err)
		}
		var found struct{ Data []string }
		err = json.NewDecoder(reply.Body).Decode(&found)
		_ = reply.Body.Close()
		if want := chosen.Replace("$" + v.Name); err != nil || !slices.Contains(found.Data, want) {
			t.Errorf("variable %s offers %v, not %s: %v", v.Name, found.Data, want, err)
		}
	}
	if len(dashboard.Panels) < 9 {
		t.Fatalf("%d panels", len(dashboard.Panels))
	}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			got, _, _, err := api.QueryRange(t.Context(), chosen.Replace(target.Expr), v1.Range{Start: m.now.Add(-3 * time.Minute), End: m.now, Step: 15 * time.Second})
			matrix, ok := got.(model.Matrix)
			if err != nil || !ok || len(matrix) == 0 || len(matrix[0].Values) < 10 {
				t.Errorf("panel %q, %s: %v, %v", panel.Title, target.Expr, got, err)
			}
		}
	}
}
