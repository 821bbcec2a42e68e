// Command image makes meshpulse's container image of static binaries, without Docker, a base image
// or root: an OCI archive (image-spec v1.1, a layout in a tar) with an index of one manifest a
// platform, which containerd, podman and skopeo read, and what is pushed to a registry. Beside the
// archive stands a bill of materials (CycloneDX) for each platform. The same binaries give the same
// bytes.
//
//	image -name REGISTRY/meshpulse:TAG [-out image.tar [-sbom]] [-push] [-version VERSION]
//		[-revision COMMIT] linux/amd64=BINARY linux/arm64=BINARY
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	ref := flags.String("name", "meshpulse:latest", "the image's name with its tag")
	out := flags.String("out", "", "OCI archive to write")
	sbom := flags.Bool("sbom", false, "write a bill of materials for each platform beside -out")
	push := flags.Bool("push", false, "push to the registry in the name, with what docker login or podman login has left")
	version := flags.String("version", "", "what the image's label and its bills of materials call the version")
	revision := flags.String("revision", "", "commit that the binaries were built from")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" && !*push {
		return errors.New("nothing to do: give -out FILE or -push")
	}
	tag, err := name.NewTag(*ref)
	if err != nil {
		return fmt.Errorf("-name: %w", err)
	}
	index, err := newIndex(flags.Args(), *version, *revision)
	if err != nil {
		return err
	}
	if *out != "" {
		if err := writeArchive(*out, tag, index); err != nil {
			return err
		}
		if *sbom {
			if err := writeBOMs(*out, flags.Args(), *version); err != nil {
				return err
			}
		}
	}
	if *push {
		if err := remote.WriteIndex(tag, index, remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithContext(ctx)); err != nil {
			return fmt.Errorf("push %s: %w", tag, err)
		}
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	fmt.Println(*ref + "@" + digest.String())
	return nil
}

// writeBOMs writes one for each PLATFORM=BINARY, beside the archive.
func writeBOMs(archive string, binaries []string, version string) error {
	for _, arg := range binaries {
		platform, binary, _ := strings.Cut(arg, "=")
		file := strings.TrimSuffix(archive, ".tar") + "-" + strings.ReplaceAll(platform, "/", "-") + ".cdx.json"
		if err := writeBOM(file, binary, version); err != nil {
			return err
		}
	}
	return nil
}
