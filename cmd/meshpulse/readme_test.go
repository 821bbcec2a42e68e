package main

import (
	"bytes"
	"context"
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what --help says into README.md")

// TestReadmeHasWhatHelpSays holds README.md to the program: each block between a comment with a
// command and the next comment is what that command prints.
func TestReadmeHasWhatHelpSays(t *testing.T) {
	before, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile(`(?s)<!-- meshpulse ((?:\w+ )?--help) -->\n.*?<!-- end -->`)
	shown := map[string]bool{}
	after := block.ReplaceAllFunc(before, func(old []byte) []byte {
		command := string(block.FindSubmatch(old)[1])
		shown[command] = true
		var help bytes.Buffer
		if code := run(context.Background(), strings.Fields(command), console{out: &help, err: &help}); code != exitOK {
			t.Fatalf("meshpulse %s ends with %d:\n%s", command, code, &help)
		}
		return []byte("<!-- meshpulse " + command + " -->\n```text\n" + strings.TrimRight(help.String(), "\n") + "\n```\n<!-- end -->")
	})
	for _, command := range []string{"--help", "serve --help", "replay --help", "lint --help", "leave --help", "top --help", "console --help", "explain --help", "shadow --help", "pods --help", "query --help"} {
		if !shown[command] {
			t.Errorf("README.md does not show meshpulse %s", command)
		}
	}
	if *update {
		if err := os.WriteFile("README.md", after, 0o644); err != nil { //nolint:gosec // it is read by everybody
			t.Fatal(err)
		}
	} else if !bytes.Equal(before, after) {
		t.Error("README.md does not show what --help says: go test ./cmd/meshpulse -run TestReadme -update")
	}
}
