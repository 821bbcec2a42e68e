package main

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Who must not know what: imports, by their beginnings. A package that knows only its own side can be read, tested and replaced on its
// own: the store survives a change of Envoy's wire format and of Kubernetes' API, and neither reaches into the other.
var forbidden = map[string][]string{
	"aggregator": {module, "google.golang.org/grpc", "github.com/envoyproxy/", "k8s.io/", "sigs.k8s.io/"},
	"envoystats": {module + "metricsapi", module + "cmd", module + "bench", "k8s.io/", "sigs.k8s.io/"},
	"metricsapi": {module + "envoystats", module + "cmd", module + "bench", "google.golang.org/grpc", "github.com/envoyproxy/"},
	// The store's leaves: words and rows, requests by cell, counts by time.
	"aggregator/internal/ring":  {module, "github.com/"},
	"aggregator/internal/fine":  {module, "github.com/prometheus/prometheus/promql", "github.com/prometheus/prometheus/storage"},
	"aggregator/internal/surge": {module, "github.com/prometheus"},
}

const module = "github.com/meshpulse/meshpulse/"

// TestImportsRunOneWay holds the direction of the design: cmd -> metricsapi, envoystats -> aggregator.
func TestImportsRunOneWay(t *testing.T) {
	checked := 0
	for folder := range forbidden {
		n, complaints := wrongImports(t, folder, filepath.Join("..", "..", folder))
		for _, c := range complaints {
			t.Error(c)
		}
		checked += n
	}
	if checked < 20 {
		t.Errorf("only %d files looked at", checked)
	}
}

// Each import that is forbidden is planted, and has to be found.
func TestAPlantedImportIsFound(t *testing.T) {
	for folder, banned := range forbidden {
		for _, b := range banned {
			root := t.TempDir()
			source := "package planted\n\nimport _ " + strconv.Quote(b+"planted") + "\n"
			if err := os.WriteFile(filepath.Join(root, "planted.go"), []byte(source), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, complaints := wrongImports(t, folder, root); len(complaints) == 0 {
				t.Errorf("%s may import %splanted", folder, b)
			}
		}
	}
}

// wrongImports looks at a folder's product code, and returns how many files that is and what they import and must not.
func wrongImports(t *testing.T, folder, root string) (files int, complaints []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		files++
		for _, i := range file.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			for _, b := range forbidden[folder] {
				if strings.HasPrefix(name, b) && !strings.HasPrefix(name, module+folder) {
					complaints = append(complaints, fmt.Sprintf("%s imports %s: %s must not know it", path, name, folder))
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return files, complaints
}
