// Command release writes what somebody installs meshpulse from, beside the image that bench/image
// has written: an archive of the command line for each platform, the manifests as one file, the
// chart's package, and the checksums of all that is there. The same files and flags give the same
// bytes.
//
//	release -version 1.2.3 -image REGISTRY/meshpulse:1.2.3@sha256:… -root PROJECT -out DIR
//		darwin/arm64=BINARY…
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// release is what all its parts name.
type release struct {
	version, image string
	// root is the project's folder, out the one that is written to.
	root, out string
}

func run(args []string) error {
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	var r release
	flags.StringVar(&r.version, "version", "", "the version, such as 1.2.3")
	flags.StringVar(&r.image, "image", "", "the image's NAME:TAG@DIGEST")
	flags.StringVar(&r.root, "root", ".", "the project's folder")
	flags.StringVar(&r.out, "out", "", "folder that is written to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if r.version == "" || r.image == "" || r.out == "" {
		return errors.New("give -version, -image and -out")
	}
	r.image = pinned(r.image)
	for _, arg := range flags.Args() {
		platform, binary, found := strings.Cut(arg, "=")
		if !found || !strings.Contains(platform, "/") {
			return fmt.Errorf("%q is not OS/ARCH=FILE", arg)
		}
		if err := r.writeCommandLine(platform, binary); err != nil {
			return err
		}
	}
	if err := r.writeInstall(); err != nil {
		return err
	}
	if err := r.writeChart(); err != nil {
		return err
	}
	return writeChecksums(r.out)
}

// file is the path of one of the release's files.
func (r release) file(suffix string) string {
	return filepath.Join(r.out, "meshpulse-"+r.version+suffix)
}

// registries are in names that a node would pull: the first part is a host.
var registries = regexp.MustCompile(`^(localhost|[^/]*[.:][^/]*)/`)

// pinned leaves out the digest of a name without a registry: such an image is loaded from its
// archive, under its tag alone.
func pinned(image string) string {
	name, _, _ := strings.Cut(image, "@")
	if registries.MatchString(name) {
		return image
	}
	return name
}
