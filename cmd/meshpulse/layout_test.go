package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestImportsRunOneWay holds the direction of the design: cmd -> metricsapi, envoystats -> aggregator. A package that knows
// only its own side can be read, tested and replaced on its own: the store survives a change of Envoy's wire format and of
// Kubernetes' API, and neither reaches into the other.
func TestImportsRunOneWay(t *testing.T) {
	const module = "github.com/meshpulse/meshpulse/"
	forbidden := map[string][]string{
		"aggregator": {module, "google.golang.org/grpc", "github.com/envoyproxy/", "k8s.io/", "sigs.k8s.io/"},
		"envoystats": {module + "metricsapi", module + "cmd", module + "bench", "k8s.io/", "sigs.k8s.io/"},
		"metricsapi": {module + "envoystats", module + "cmd", module + "bench", "google.golang.org/grpc", "github.com/envoyproxy/"},
	}
	checked := 0
	for folder, banned := range forbidden {
		root := filepath.Join("..", "..", folder)
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			checked++
			for _, i := range file.Imports {
				name, err := strconv.Unquote(i.Path.Value)
				if err != nil {
					return err
				}
				for _, b := range banned {
					if strings.HasPrefix(name, b) && !strings.HasPrefix(name, module+folder) {
						t.Errorf("%s imports %s: %s must not know it", path, name, folder)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if checked < 20 {
		t.Errorf("only %d files looked at", checked)
	}
}
