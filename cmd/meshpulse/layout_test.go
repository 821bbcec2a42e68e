package main

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/meshpulse/meshpulse/"

// packageRule is what a package may know. What it does not know it can be read, tested and replaced
// without.
type packageRule struct {
	ours  []string // packages of ours that it may import
	never []string // packages of others, with all below them, that it must not
	why   string
}

// packageRules are those of the product's packages: cmd -> metricsapi, envoystats -> aggregator,
// and within them one way.
func packageRules() map[string]packageRule {
	const (
		kubernetes = "k8s.io"
		grpc       = "google.golang.org/grpc"
		envoy      = "github.com/envoyproxy"
		prometheus = "github.com/prometheus"
	)
	return map[string]packageRule{
		"aggregator": {
			ours:  []string{"aggregator/internal/fine", "aggregator/internal/ring", "aggregator/internal/surge"},
			never: []string{grpc, envoy, kubernetes, "sigs.k8s.io"},
			why:   "the store survives a change of Envoy's wire format and of Kubernetes' API",
		},
		"aggregator/internal/ring": {
			never: []string{grpc, envoy, kubernetes, "github.com"},
			why:   "who may write a ring, and who reads it when, is held by what nobody else can name",
		},
		"aggregator/internal/fine": {
			never: []string{grpc, envoy, kubernetes, prometheus + "/prometheus/promql", prometheus + "/prometheus/storage"},
			why:   "rows go in and a histogram comes out, whatever the query",
		},
		"aggregator/internal/surge": {
			never: []string{grpc, envoy, kubernetes, prometheus},
			why:   "a surge is told by counts, wherever they lie",
		},
		"envoystats": {
			ours:  []string{"aggregator", "envoystats/relay"},
			never: []string{kubernetes, "sigs.k8s.io"},
			why:   "who reports, and what, is told to the store, whoever asks it",
		},
		"envoystats/fleet": {
			never: []string{grpc, envoy, kubernetes, prometheus},
			why:   "who owns what follows from a list of names, however it is come by",
		},
		"envoystats/relay": {
			ours:  []string{"aggregator", "envoystats/fleet"},
			never: []string{envoy, kubernetes, "sigs.k8s.io"},
			why:   "flushes are handed on as they came, and what is asked is bytes",
		},
		"envoystats/meshca": {
			never: []string{envoy, kubernetes, "sigs.k8s.io"},
			why:   "a certificate of the mesh is asked for by whoever needs one, and nothing else of ours is needed for it",
		},
		"envoystats/replay": {
			never: []string{kubernetes, "sigs.k8s.io"},
			why:   "it sends what was recorded, as any sidecar would",
		},
		"metricsapi": {
			ours:  []string{"aggregator", "metricsapi/cluster", "metricsapi/explain", "metricsapi/fallback", "metricsapi/horizontal", "metricsapi/hpas", "metricsapi/shadow"},
			never: []string{grpc, envoy},
			why:   "answers stand on the store, however its samples came there",
		},
		"metricsapi/cluster": {
			ours:  []string{"aggregator", "metricsapi/cluster/meshpod", "metricsapi/hpas"},
			never: []string{grpc, envoy, "k8s.io/apiserver", "sigs.k8s.io/custom-metrics-apiserver"},
			why:   "what the API server tells does not depend on what is decided by it",
		},
		"metricsapi/cluster/meshpod": {
			never: []string{grpc, envoy, "k8s.io/client-go"},
			why:   "the lab makes its pods by the same rules, and has nothing else of meshpulse",
		},
		"metricsapi/promapi": {
			ours: []string{"aggregator"},
			why:  "it answers as Prometheus does, whatever an HPA is answered: what would be held it is told of by a function",
		},
		"metricsapi/keda": {
			ours:  []string{"metricsapi/keda/externalscaler"},
			never: []string{envoy, kubernetes, "sigs.k8s.io", prometheus + "/prometheus"},
			why:   "KEDA's wire is spoken, whatever the answers stand on",
		},
		"metricsapi/keda/externalscaler": {
			never: []string{envoy, kubernetes, "sigs.k8s.io", prometheus},
			why:   "it is generated, and is the wire alone",
		},
		"metricsapi/fallback": {
			never: []string{grpc, envoy, prometheus, "k8s.io/api", "sigs.k8s.io/custom-metrics-apiserver"},
			why:   "a request is passed on as it is, whatever it asks for",
		},
		"metricsapi/shadow": {
			never: []string{grpc, envoy, "k8s.io", "sigs.k8s.io"},
			why:   "two readings are compared as numbers, whoever asks for them",
		},
		"metricsapi/horizontal": {
			never: []string{grpc, envoy, "k8s.io/client-go"},
			why:   "the controller's arithmetic is held against the real one's, and takes numbers alone",
		},
		"metricsapi/explain": {
			ours:  []string{"metricsapi/hpas"},
			never: []string{grpc, envoy, prometheus, "k8s.io/client-go", "k8s.io/apiserver", "net", "os"},
			why:   "what was found out is put into words without whoever found it, in the server as in the command line",
		},
		"metricsapi/pages": {
			ours:  []string{"metricsapi/explain"},
			never: []string{grpc, envoy, prometheus, "k8s.io/client-go", "k8s.io/apiserver", "os"},
			why:   "explanations are drawn, whoever gives them, and with nobody's rights",
		},
		"metricsapi/internal/fixture": {
			ours:  []string{"aggregator"},
			never: []string{grpc, envoy, "k8s.io/client-go", "k8s.io/apiserver"},
			why:   "the tests of every package of metricsapi use it, and no product code",
		},
		"metricsapi/hpas": {
			ours:  []string{"aggregator"},
			never: []string{grpc, envoy, "k8s.io/client-go", "k8s.io/apiserver", "net", "os", "io/ioutil"},
			why:   "HPAs can be read, and checked, without a cluster, a store or a file",
		},
	}
}

// wrongImports says which imports of a package are against its rule, and why they are.
func wrongImports(rules map[string]packageRule, folder string, imports []string) (wrong []string) {
	rule, ok := rules[folder]
	if !ok {
		return []string{folder + " has no rule: say in packageRules what of ours it may import, and why no more"}
	}
	for _, name := range imports {
		our, ours := strings.CutPrefix(name, module)
		never := func(other string) bool { return name == other || strings.HasPrefix(name, other+"/") }
		if ours && !slices.Contains(rule.ours, our) || slices.ContainsFunc(rule.never, never) {
			wrong = append(wrong, fmt.Sprintf("%s must not import %s: %s", folder, name, rule.why))
		}
	}
	return wrong
}

// TestTheTopLevelHasAPlaceForAll: whoever comes new finds there what there is, and no binary that
// somebody has built.
func TestTheTopLevelHasAPlaceForAll(t *testing.T) {
	known := []string{
		"aggregator", "bench", "cmd", "envoystats", "manifests", "metricsapi", "go.mod", "go.sum", "Makefile", "README.md", "LICENSE", "CONTRIBUTING.md",
	}
	ignored, err := os.ReadFile("../../.gitignore")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("../..")
	if err != nil || len(entries) < len(known) {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for _, e := range entries {
		ignores := func(pattern string) bool {
			matches, err := filepath.Match(strings.Trim(pattern, "/"), e.Name())
			return err == nil && matches
		}
		if !slices.Contains(known, e.Name()) && !strings.HasPrefix(e.Name(), ".") && !slices.ContainsFunc(strings.Fields(string(ignored)), ignores) {
			t.Errorf("%s has no place at the top level", e.Name())
		}
	}
}

// TestPackagesKnowOnlyWhatTheyMay holds the direction of the design.
func TestPackagesKnowOnlyWhatTheyMay(t *testing.T) {
	rules, root := packageRules(), filepath.Join("..", "..")
	found := map[string]bool{}
	for _, top := range []string{"aggregator", "envoystats", "metricsapi"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			var imports []string
			for _, i := range file.Imports {
				name, err := strconv.Unquote(i.Path.Value)
				if err != nil {
					return err
				}
				imports = append(imports, name)
			}
			folder, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			found[filepath.ToSlash(folder)] = true
			for _, wrong := range wrongImports(rules, filepath.ToSlash(folder), imports) {
				t.Errorf("%s: %s", path, wrong)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	for folder := range rules {
		if !found[folder] {
			t.Errorf("the rule for %s is for nothing: no such package", folder)
		}
	}
}

// TestAnArrowThatIsPlantedIsTold plants each arrow that there must not be: between any two
// packages, to any of the others' that a package must not know, and from a package without a rule.
func TestAnArrowThatIsPlantedIsTold(t *testing.T) {
	rules := packageRules()
	planted := 0
	told := func(folder, name, why string) {
		t.Helper()
		planted++
		if wrong := wrongImports(rules, folder, []string{"fmt", name}); len(wrong) != 1 || !strings.Contains(wrong[0], name) || !strings.Contains(wrong[0], why) {
			t.Errorf("%s imports %s: told %q", folder, name, wrong)
		}
	}
	for folder, rule := range rules {
		for _, other := range append(slices.Collect(maps.Keys(rules)), "cmd/meshpulse", "bench/fleet") {
			if !slices.Contains(rule.ours, other) {
				told(folder, module+other, rule.why)
			}
		}
		for _, other := range rule.never {
			told(folder, other, rule.why)
			told(folder, other+"/below", rule.why)
		}
		if wrong := wrongImports(rules, folder, []string{"fmt", "strings"}); len(wrong) > 0 {
			t.Errorf("%s may import what it likes of Go's: told %q", folder, wrong)
		}
	}
	if wrong := wrongImports(rules, "metricsapi/new", nil); len(wrong) != 1 || !strings.Contains(wrong[0], "has no rule") {
		t.Errorf("a package without a rule: told %q", wrong)
	}
	if planted < 60 {
		t.Errorf("only %d arrows planted", planted)
	}
}
