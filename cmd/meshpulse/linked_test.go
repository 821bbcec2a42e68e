package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What calls methods by names that are not known before keeps the linker from leaving out any
// method. gRPC's traces do, which a build tag leaves out: a third of the program, and 15 MiB of
// what an idle process has in memory.
func TestWhatIsBuiltLinksNoTraces(t *testing.T) {
	const tags = "grpcnotrace"
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags", tags, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "golang.org/x/net/trace\n") {
		t.Error("golang.org/x/net/trace is linked with -tags " + tags)
	}
	for file, part := range map[string]string{"Makefile": "-tags $(TAGS)", filepath.Join("manifests", "Dockerfile"): "-tags " + tags} {
		b, err := os.ReadFile(filepath.Join("..", "..", file))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "\\\n", "")
		if file == "Makefile" && !strings.Contains(text, "\nTAGS       = "+tags+"\n") {
			t.Errorf("%s: TAGS is not %s", file, tags)
		}
		built := 0
		for line := range strings.Lines(text) {
			if strings.Contains(line, "build ") && strings.Contains(line, "./cmd/meshpulse") {
				if built++; !strings.Contains(line, part) {
					t.Errorf("%s builds without %s: %s", file, part, strings.TrimSpace(line))
				}
			}
		}
		if built == 0 {
			t.Errorf("%s builds no meshpulse", file)
		}
	}
}
