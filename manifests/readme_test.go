package manifests

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func readme(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// TestReadmeNamesEveryEvent holds the table of events to the constants of metricsapi.
func TestReadmeNamesEveryEvent(t *testing.T) {
	source, err := os.ReadFile("../metricsapi/problem.go")
	if err != nil {
		t.Fatal(err)
	}
	reasons := regexp.MustCompile(`(?m)^\s*Reason\w+\s*=\s*"(\w+)"`).FindAllStringSubmatch(string(source), -1)
	if len(reasons) == 0 {
		t.Fatal("no reasons in metricsapi/problem.go")
	}
	text := readme(t)
	for _, reason := range reasons {
		if !strings.Contains(text, "`"+reason[1]+"`") {
			t.Errorf("event reason %s is not in the README", reason[1])
		}
	}
}

// TestReadmesPathsExist: a command that names a file which has moved is worse than none.
func TestReadmesPathsExist(t *testing.T) {
	for _, file := range []string{"../README.md", "../CONTRIBUTING.md", "istio/README.md"} {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range regexp.MustCompile(`manifests/[\w./*-]*\w`).FindAllString(string(content), -1) {
			if found, err := filepath.Glob(filepath.Join("..", path)); err != nil || len(found) == 0 {
				t.Errorf("%s names %s, which is not there (%v)", file, path, err)
			}
		}
	}
}
