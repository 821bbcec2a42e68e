package manifests

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestFlags compares what is written down with what the program itself takes. One test, since it
// builds the program.
func TestFlags(t *testing.T) {
	program := filepath.Join(t.TempDir(), "meshpulse")
	if out, err := exec.Command("go", "build", "-o", program, "../cmd/meshpulse").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	t.Run("the Deployment's are taken", func(t *testing.T) { deploymentFlags(t, program) })
	t.Run("the documents name all and no other", func(t *testing.T) { documentedFlags(t, program) })
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

// documentedFlags: the list is what --help says (cmd/meshpulse/readme_test.go). What is said of a
// flag elsewhere is said of one that is there, and of none of another program.
func documentedFlags(t *testing.T, program string) {
	known := map[string]bool{}
	for _, command := range []string{"serve", "replay", "lint", "top", "console", "explain", "pods", "query"} {
		help, err := exec.Command(program, command, "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		flags := words(`(?m)^ +(--[a-z-]+)`, string(help))
		if len(flags) == 0 {
			t.Fatalf("%s --help lists no flags:\n%s", command, help)
		}
		for _, flag := range flags {
			known[flag] = true
			if !slices.Contains(words(`(?m)^ +(--[a-z-]+)`, read(t, "cmd/meshpulse/README.md")), flag) {
				t.Errorf("%s's %s is not in cmd/meshpulse/README.md", command, flag)
			}
		}
	}
	for _, script := range []string{"manifests/install.sh", "manifests/uninstall.sh", "bench/lab/node/main.go"} {
		for _, flag := range words(`(--[a-z][a-z-]*)`, read(t, script)) {
			known[flag] = true
		}
	}
	known["--help"] = true
	for _, document := range documents(t) {
		for _, flag := range words("`(--[a-z-]+)[ =`]", read(t, document)) {
			if !known[flag] {
				t.Errorf("%s names %s, which neither the program nor a script knows", document, flag)
			}
		}
	}
}
