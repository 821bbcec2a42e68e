package manifests

import (
	"slices"
	"strings"
	"testing"

	commands "github.com/meshpulse/meshpulse/bench/documents"
)

// TestEveryCommandForAClusterIsRunOnOne: `make lab-node` runs each command of the documents that it
// can, as it stands there. One that it cannot has to say why, in the document; else nobody would
// know that it had gone wrong.
func TestEveryCommandForAClusterIsRunOnOne(t *testing.T) {
	blocks, err := commands.Read("..")
	if err != nil {
		t.Fatal(err)
	}
	run := 0
	for _, block := range blocks {
		if block.Excuse != "" {
			continue
		}
		for _, command := range block.Commands {
			if err := commands.Runnable(command); err != nil {
				t.Errorf("%s: `make lab-node` cannot run it: %v. Write it so that it can, or say why not in <!-- not run: WHY --> before it", block, err)
			}
			run++
		}
	}
	if run < 25 {
		t.Errorf("only %d commands are run", run)
	}
}

// TestTheGuidesAreThere: what `make lab-node` holds to more than that a command ends well, it finds
// by these.
func TestTheGuidesAreThere(t *testing.T) {
	blocks, err := commands.Read("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range commands.Watched() {
		if !slices.ContainsFunc(blocks, func(b commands.Block) bool { return b.Excuse == "" && b.Names(name) }) {
			t.Errorf("no block of a document has a command with %q, by which `make lab-node` finds what to watch", strings.TrimSpace(name))
		}
	}
}
