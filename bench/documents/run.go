package documents

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// What `make lab-node` watches beyond that each command ends well, by a text of one of the
// commands, wherever the documents have them.
const (
	Install     = "manifests/install.sh --image"
	ByRequests  = "manifests/examples/requests-total.yaml"
	ByLatency   = "manifests/examples/latency-average.yaml"
	OneWorkload = "manifests/examples/requests-per-workload.yaml"
	ActAtSurge  = "meshpulse.io/surge-action=scale"
	Observer    = "create token observer"
	Uninstall   = "manifests/uninstall.sh"
)

// Image is what the documents call the image that is installed.
const Image = "REGISTRY/meshpulse:TAG@sha256:…"

// Watched are all of them.
func Watched() []string {
	return []string{Install, ByRequests, ByLatency, OneWorkload, ActAtSurge, Observer, Uninstall}
}

// programs are those of the lab's node; make's targets are for the project's folder, and not run
// there.
var programs = regexp.MustCompile(`^(kubectl|curl|make|manifests/(un)?install\.sh)( |$)`)

// Runnable is an error that says what of a command the lab's node does not have.
func Runnable(c Command) error {
	if !programs.MatchString(c.Text) {
		program, _, _ := strings.Cut(c.Text, " ")
		return fmt.Errorf("it has no %s", program)
	}
	if strings.HasPrefix(c.Text, "make ") {
		return nil
	}
	_, err := Fill(c.Text, Values("image")...)
	return err
}

// Values are what the lab's node puts in place of what commands leave to their reader, for Fill:
// the image, and the guides' namespace, metric and query.
func Values(image string) []string {
	return []string{
		Image, image,
		"REGISTRY/meshpulse:TAG", image,
		"NAMESPACE/METRIC", "test/prometheus-query",
		"KEY%3DVALUE", "query-name%3Dp95-latency",
		"NAMESPACE", "test",
	}
}

// Find returns the first block that is run, has several commands, and has one with the text.
func Find(blocks []Block, text string) (Block, error) {
	i := slices.IndexFunc(blocks, func(b Block) bool { return b.Excuse == "" && len(b.Commands) > 1 && b.Names(text) })
	if i < 0 {
		return Block{}, fmt.Errorf("no block of a document has a command with %q", text)
	}
	return blocks[i], nil
}
