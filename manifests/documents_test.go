package manifests

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// read returns a file of the project, by its path from the top.
func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// files returns the project's files that end in a suffix, by their paths from the top, without what
// is built, fetched or recorded.
func files(t *testing.T, suffix string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && path != ".." && (strings.HasPrefix(name, ".") || name == "bin" || name == "testdata") {
			return filepath.SkipDir
		}
		if !d.IsDir() && strings.HasSuffix(path, suffix) {
			found = append(found, filepath.ToSlash(strings.TrimPrefix(path, ".."+string(filepath.Separator))))
		}
		return nil
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("files that end in %s: %d found, %v", suffix, len(found), err)
	}
	return found
}

// code returns what the product's code below a folder says, tests aside.
func code(t *testing.T, folder string) string {
	t.Helper()
	var all strings.Builder
	for _, path := range files(t, ".go") {
		if strings.HasPrefix(path, folder+"/") && !strings.HasSuffix(path, "_test.go") {
			all.WriteString(read(t, path))
		}
	}
	return all.String()
}

// words returns the distinct texts of the expression's first group, sorted.
func words(expression, text string) []string {
	found := map[string]bool{}
	for _, m := range regexp.MustCompile(expression).FindAllStringSubmatch(text, -1) {
		found[m[1]] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// below returns what stands below a heading, up to the next one that is not below it.
func below(t *testing.T, document, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut("\n"+read(t, document), "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no heading %q", document, heading)
	}
	level, _, _ := strings.Cut(heading, " ")
	if end := regexp.MustCompile(`(?m)^#{1,` + string(rune('0'+len(level))) + `} `).FindStringIndex(rest); end != nil {
		rest = rest[:end[0]]
	}
	return rest
}

// same fails for each word that the code or the document has alone.
func same(t *testing.T, what, document string, inCode, inDocument []string) {
	t.Helper()
	if len(inCode) == 0 {
		t.Fatalf("the code has no %s: this test looks in the wrong place", what)
	}
	for _, name := range inCode {
		if !slices.Contains(inDocument, name) {
			t.Errorf("%s does not have the %s %s", document, what, name)
		}
	}
	for _, name := range inDocument {
		if !slices.Contains(inCode, name) {
			t.Errorf("%s has the %s %s, which the code does not know", document, what, name)
		}
	}
}

func TestTheRunbookHasEveryEvent(t *testing.T) {
	const document = "manifests/runbook.md"
	events := below(t, document, "## Events")
	rows := strings.Join(words(`(?m)^\| (`+"`[^|]*"+`) \|`, events), " ")
	_, done, _ := strings.Cut(events, "Normal events say")
	same(t, "event", document, words(`\bReason\w+\s*=\s*"(\w+)"`, code(t, "metricsapi")), words("`([A-Z]\\w+)`", rows+done))
}

func TestTheReferenceHasEveryNamedMetric(t *testing.T) {
	const document = "metricsapi/README.md"
	same(t, "metric", document, words(`(?:case|requests(?:Active|Pending) +=) "(istio-[\w-]+)"`, code(t, "metricsapi")),
		words("`(istio-[\\w-]+)`", below(t, document, "## Metrics that need no PromQL")))
}

func TestTheReferenceHasEveryAnnotation(t *testing.T) {
	const document = "metricsapi/README.md"
	// Labels, of which manifests know.
	annotations := strings.NewReplacer("meshpulse.io/prometheus-api=allowed", "", "meshpulse.io/keda=allowed", "").Replace(read(t, document))
	same(t, "annotation meshpulse.io/", document, words(`"(?:meshpulse\.io/)?((?:surge|readable)-[a-z]+|serve)"`, code(t, "metricsapi")), words(`meshpulse\.io/([a-z-]+[a-z])`, annotations))
}

// TestTheRunbookHasEveryMetricThatIs: an alert on a metric that was renamed never fires, and one
// that nobody is told of is never made.
func TestTheRunbookHasEveryMetricThatIs(t *testing.T) {
	const runbook = "manifests/runbook.md"
	known := map[string]bool{}
	for _, folder := range []string{"aggregator", "envoystats", "metricsapi", "cmd"} {
		text := code(t, folder)
		for _, name := range words(`"(meshpulse_[a-z_]+)"`, text) {
			known[name] = true
		}
		for _, name := range words(`(?:counter|vec|opts)\("([a-z_]+)"`, text) {
			if !strings.HasPrefix(name, "meshpulse_") { // those of ingest are written without what they have in common
				known["meshpulse_ingest_"+name] = true
			}
		}
	}
	for _, document := range documents(t) {
		for _, name := range words(`\b(meshpulse_[a-z_]+)`, read(t, document)) {
			if !known[name] {
				t.Errorf("%s names %s, which is not in the code", document, name)
			}
		}
	}
	for name := range known {
		if _, part, _ := strings.Cut(name, "_"); strings.Contains(part, "_") && !strings.Contains(read(t, runbook), name) {
			t.Errorf("%s does not have the metric %s", runbook, name)
		}
	}
	if len(known) < 20 {
		t.Errorf("only %d metrics are found in the code", len(known))
	}
}

// documents are those that somebody writes: results of measurements are written by programs.
func documents(t *testing.T) []string {
	return slices.DeleteFunc(files(t, ".md"), func(path string) bool { return strings.HasPrefix(path, "bench/results/") })
}

// TestDocumentsPathsExist: a command that names a file which has moved is worse than none.
func TestDocumentsPathsExist(t *testing.T) {
	for _, document := range documents(t) {
		for _, path := range words(`\b((?:cmd|envoystats|aggregator|metricsapi|manifests|bench)/[\w./*-]*\w)`, read(t, document)) {
			if found, err := filepath.Glob(filepath.Join("..", path)); err != nil || len(found) == 0 {
				t.Errorf("%s names %s, which is not there (%v)", document, path, err)
			}
		}
	}
}

// TestDocumentsHPAsAreHPAs: whoever copies one gets what an API server takes.
func TestDocumentsHPAsAreHPAs(t *testing.T) {
	found := 0
	for _, document := range documents(t) {
		for _, block := range words("(?s)\n```yaml\n(.*?)\n```\n", read(t, document)) {
			if strings.Contains(block, "kind: HorizontalPodAutoscaler") {
				found++
				decode(t, document, []byte(block))
			}
		}
	}
	if found == 0 {
		t.Error("no document shows an HPA")
	}
}

// TestLinksBetweenDocumentsResolve: every link that names no other site leads to a file, and to a
// heading where it names one.
func TestLinksBetweenDocumentsResolve(t *testing.T) {
	links := 0
	for _, document := range files(t, ".md") {
		for _, target := range words(`\]\(([^)\s]+)\)`, withoutCode(read(t, document))) {
			if strings.Contains(target, "://") {
				continue
			}
			links++
			path, heading, _ := strings.Cut(target, "#")
			if path = filepath.Join(filepath.Dir(document), path); strings.HasPrefix(target, "#") {
				path = document
			}
			if _, err := os.Stat(filepath.Join("..", path)); err != nil {
				t.Errorf("%s links to %s: %v", document, target, err)
			} else if heading != "" && !slices.Contains(anchors(read(t, path)), heading) {
				t.Errorf("%s links to %s, and %s has no such heading", document, target, path)
			}
		}
	}
	if links < 50 {
		t.Errorf("only %d links were looked at", links)
	}
}

// withoutCode leaves out fenced blocks and code spans, in which brackets are no links.
func withoutCode(document string) string {
	document = regexp.MustCompile("(?ms)^```.*?^```").ReplaceAllString(document, "")
	return regexp.MustCompile("`[^`\n]*`").ReplaceAllString(document, "code")
}

// anchors are the headings of a document as the sites that show it name them: in lower case, spaces
// as hyphens, without other signs.
func anchors(document string) []string {
	var found []string
	fences := regexp.MustCompile("(?ms)^```.*?^```").ReplaceAllString(document, "")
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(fences, -1) {
		name := strings.ToLower(regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`).ReplaceAllString(heading[1], "$1"))
		name = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(name, "")
		found = append(found, strings.ReplaceAll(strings.TrimSpace(name), " ", "-"))
	}
	return found
}

// TestReadmeIsReadInTwoMinutes: what does not help to decide stands where it is maintained.
func TestReadmeIsReadInTwoMinutes(t *testing.T) {
	if lines := strings.Count(read(t, "README.md"), "\n"); lines > 120 {
		t.Errorf("README.md has %d lines, and 120 are enough: put the rest into the folder that it is about", lines)
	}
}

// TestTheTestsThatDocumentsNameAreThere: a table that says which test holds what says nothing once
// the test is gone.
func TestTheTestsThatDocumentsNameAreThere(t *testing.T) {
	var all strings.Builder
	for _, path := range files(t, "_test.go") {
		all.WriteString(read(t, path))
	}
	there, named := words(`(?m)^func (Test\w+)\(`, all.String()), 0
	for _, document := range documents(t) {
		for _, name := range words("`(Test[A-Z]\\w+)`", read(t, document)) {
			if named++; !slices.Contains(there, name) {
				t.Errorf("%s names %s, which is not there", document, name)
			}
		}
	}
	if named < 10 {
		t.Errorf("only %d tests are named in the documents", named)
	}
}
