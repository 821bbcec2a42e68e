package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Within aggregator files are in groups, which use each other in one direction: query -> index ->
// store. So the store can be read without knowing what is asked of it, and a change of how it is
// asked cannot reach a writer.
var aggregatorGroups = []fileGroup{
	{"store", "what is kept, and who writes it", []string{
		"api.go", "asked.go", "bounded.go", "classes.go", "column.go", "commit.go", "config.go", "doc.go", "faults.go",
		"firstrow.go", "flush.go", "foreign.go", "gap.go", "identity.go", "introduce.go", "layout.go", "list.go",
		"marks.go", "memory.go", "metrics.go", "owner.go", "past.go", "ranges.go", "readable.go", "sender.go", "shares.go",
		"state.go", "steps.go", "store.go", "stream.go", "table.go", "tables.go",
	}},
	{"index", "which series a selector means", []string{
		"candidates.go", "index.go", "scan.go", "selection.go", "selector.go", "sides.go",
	}},
	{"query", "what is asked", []string{
		"absent.go", "aggregator.go", "compile.go", "coverage.go", "engine.go",
		"group.go", "lengthen.go", "listing.go", "meant.go", "parse.go", "quantile.go", "query.go", "queryable.go", "rate.go",
		"reporters.go", "surge.go", "surgeplan.go", "surgerows.go", "turns.go", "unkept.go", "watch.go",
	}},
}

type fileGroup struct {
	name, is string
	files    []string
}

// checkedPackage is a package's source, and what its identifiers mean.
type checkedPackage struct {
	fset  *token.FileSet
	files map[string]*ast.File // by base name
	info  types.Info
	pkg   *types.Package
}

// exported finds the export data of a package's imports, which the build of this test has left in
// Go's cache.
func exported(t *testing.T, pattern string) func(path string) (io.ReadCloser, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-export", "-deps", "-json=ImportPath,Export", pattern).Output()
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]string{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct{ ImportPath, Export string }
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		at[p.ImportPath] = p.Export
	}
	return func(path string) (io.ReadCloser, error) { return os.Open(at[path]) }
}

// sourcesOf returns the product code of a folder, by the names of its files.
func sourcesOf(t *testing.T, folder string) map[string]string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	sources := map[string]string{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sources[filepath.Base(name)] = string(src)
	}
	return sources
}

func check(t *testing.T, path string, sources map[string]string, imports func(string) (io.ReadCloser, error)) *checkedPackage {
	t.Helper()
	p := &checkedPackage{fset: token.NewFileSet(), files: map[string]*ast.File{}}
	var all []*ast.File
	for _, name := range slices.Sorted(maps.Keys(sources)) {
		f, err := parser.ParseFile(p.fset, name, sources[name], 0)
		if err != nil {
			t.Fatal(err)
		}
		p.files[name], all = f, append(all, f)
	}
	p.info = types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: importer.ForCompiler(p.fset, "gc", imports)}
	var err error
	if p.pkg, err = config.Check(path, p.fset, all, &p.info); err != nil {
		t.Fatal(err)
	}
	return p
}

// arrow is a use of what another file declares.
type arrow struct{ from, to, object string }

// arrows returns who uses what of the package's: objects of the package's scope, and methods, each
// by the file that declares it.
func (p *checkedPackage) arrows() map[arrow]int {
	found := map[arrow]int{}
	for id, obj := range p.info.Uses {
		if f, ok := obj.(*types.Func); ok {
			obj = f.Origin()
		}
		method, _ := obj.(*types.Func)
		own := obj.Pkg() == p.pkg && (obj.Parent() == p.pkg.Scope() || method != nil && method.Signature().Recv() != nil)
		if !own || !obj.Pos().IsValid() {
			continue
		}
		from, to := p.fset.Position(id.Pos()).Filename, p.fset.Position(obj.Pos()).Filename
		if from != to {
			found[arrow{from, to, obj.Name()}]++
		}
	}
	return found
}

// upward returns the arrows from a group to a later one, and files that are in no group, as
// complaints.
func upward(groups []fileGroup, p *checkedPackage) (complaints []string) {
	place := map[string]int{}
	for i, g := range groups {
		for _, f := range g.files {
			place[f] = i + 1
			if p.files[f] == nil {
				complaints = append(complaints, fmt.Sprintf("%s is no file: strike it from group %s", f, g.name))
			}
		}
	}
	for f := range p.files {
		if place[f] == 0 {
			complaints = append(complaints, fmt.Sprintf("%s is in no group: say which it belongs to", f))
		}
	}
	for a := range p.arrows() {
		from, to := place[a.from], place[a.to]
		if from == 0 || to == 0 || from >= to {
			continue
		}
		below, above := groups[from-1], groups[to-1]
		complaints = append(complaints, fmt.Sprintf("%s uses %s of %s: %s (%s) must not know %s (%s), or neither can be read or changed without the other",
			a.from, a.object, a.to, below.name, below.is, above.name, above.is))
	}
	slices.Sort(complaints)
	return complaints
}

const aggregatorPath = "github.com/meshpulse/meshpulse/aggregator"

var aggregatorFolder = filepath.Join("..", "..", "aggregator")

func TestAggregatorsFilesUseEachOtherInOneDirection(t *testing.T) {
	p := check(t, aggregatorPath, sourcesOf(t, aggregatorFolder), exported(t, aggregatorFolder))
	for _, c := range upward(aggregatorGroups, p) {
		t.Error(c)
	}
	if n := len(p.arrows()); n < 300 {
		t.Errorf("only %d arrows are looked at", n)
	}
}

// An arrow of each kind is planted, and has to be found.
func TestAPlantedArrowIsFound(t *testing.T) {
	imports := exported(t, aggregatorFolder)
	for name, plant := range map[string]struct{ file, source, want string }{
		"the store uses the index":            {"column.go", "func planted(s *selector) {}", "column.go uses selector of selector.go"},
		"the store uses a query":              {"commit.go", "func planted(q *Query) {}", "commit.go uses Query of query.go"},
		"the index uses a query":              {"sides.go", "func planted() any { return newEngine() }", "sides.go uses newEngine of engine.go"},
		"the store uses the query's constant": {"table.go", "const planted = funcIrate", "table.go uses funcIrate of rate.go"},
		"the index uses a method of the query's": {
			"scan.go", "func planted(p interface{ over(*ring.Rows, ring.Row, ring.Row, int64, int64) over }) {}", "scan.go uses over of rate.go",
		},
		"a method is reached without its type": {"list.go", "func planted(s *store) any { return s.classes.follower.(*index).registered.matching }", "list.go uses matching of selection.go"},
		"a file of no group":                   {"planted.go", "package aggregator", "planted.go is in no group"},
	} {
		t.Run(name, func(t *testing.T) {
			sources := sourcesOf(t, aggregatorFolder)
			sources[plant.file] += "\n" + plant.source + "\n"
			complaints := upward(aggregatorGroups, check(t, aggregatorPath, sources, imports))
			if !slices.ContainsFunc(complaints, func(c string) bool { return strings.HasPrefix(c, plant.want) }) {
				t.Errorf("found %q, want %q", complaints, plant.want)
			}
		})
	}
	t.Run("a file that is gone", func(t *testing.T) {
		groups := append(slices.Clone(aggregatorGroups), fileGroup{"gone", "", []string{"gone.go"}})
		complaints := upward(groups, check(t, aggregatorPath, sourcesOf(t, aggregatorFolder), imports))
		if len(complaints) != 1 || !strings.HasPrefix(complaints[0], "gone.go is no file") {
			t.Errorf("found %q", complaints)
		}
	})
}
