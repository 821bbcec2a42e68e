package manifests

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestFlags compares what is written down with what the program itself takes. One test, since it builds the program.
func TestFlags(t *testing.T) {
	program := filepath.Join(t.TempDir(), "meshpulse")
	if out, err := exec.Command("go", "build", "-o", program, "../cmd/meshpulse").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	t.Run("the Deployment's are taken", func(t *testing.T) { deploymentFlags(t, program) })
	t.Run("the README names all and no other", func(t *testing.T) { readmeFlags(t, program) })
}

// deploymentFlags adds --help, which is looked at only after every flag before it was taken.
func deploymentFlags(t *testing.T, program string) {
	_, _, c := base(t)
	if out, err := exec.Command(program, append(slices.Clone(c.Args), "--help")...).CombinedOutput(); err != nil {
		t.Errorf("meshpulse %v --help: %v\n%s", c.Args, err, out)
	}
	unknown := append(slices.Clone(c.Args), "--no-such-flag", "--help")
	if out, err := exec.Command(program, unknown...).CombinedOutput(); err == nil {
		t.Errorf("meshpulse %v succeeds, so this test cannot fail\n%s", unknown, out)
	}
}

func readmeFlags(t *testing.T, program string) {
	text := readme(t)
	known := map[string]bool{}
	for _, command := range []string{"serve", "replay"} {
		help, err := exec.Command(program, command, "--help").Output()
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
