package manifests

import (
	"os"
	"os/exec"
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

// TestReadmeNamesEveryFlag compares the README's table with what the program itself lists, both ways.
func TestReadmeNamesEveryFlag(t *testing.T) {
	text, meshpulse := readme(t), program(t)
	known := map[string]bool{}
	for _, command := range []string{"serve", "replay"} {
		help, err := exec.Command(meshpulse, command, "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		flags := regexp.MustCompile(`(?m)^ +(--[a-z-]+)`).FindAllStringSubmatch(string(help), -1)
		if len(flags) == 0 {
			t.Fatalf("%s --help lists no flags:\n%s", command, help)
		}
		for _, flag := range flags {
			known[flag[1]] = true
			if !strings.Contains(text, "`"+flag[1]+"`") && !strings.Contains(text, "`"+command+" "+flag[1]) {
				t.Errorf("%s's %s is not in the README", command, flag[1])
			}
		}
	}
	_, table, found := strings.Cut(text, "## Flags of serve")
	if !found {
		t.Fatal("the README has no table of flags")
	}
	table, _, _ = strings.Cut(table, "\n## ")
	for _, flag := range regexp.MustCompile("`(--[a-z-]+)`").FindAllStringSubmatch(table, -1) {
		if !known[flag[1]] {
			t.Errorf("the README names %s, which the program does not know", flag[1])
		}
	}
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
