package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// epoch is every time in the image: when it was built is nobody's business, and would make other
// bytes.
var epoch = time.Unix(0, 0).UTC()

// user is nonroot's number and group: Kubernetes can tell that it is not root only of a number.
const user = "65532:65532"

// newIndex returns an index of an image for each PLATFORM=BINARY.
func newIndex(binaries []string, version, revision string) (v1.ImageIndex, error) {
	if len(binaries) == 0 {
		return nil, errors.New("no binary: give PLATFORM=FILE, such as linux/amd64=bin/image/meshpulse-amd64")
	}
	index := v1.ImageIndex(mutate.IndexMediaType(empty.Index, types.OCIImageIndex))
	for _, arg := range binaries {
		text, file, _ := strings.Cut(arg, "=")
		platform, err := v1.ParsePlatform(text)
		if err != nil || platform.OS == "" || platform.Architecture == "" || file == "" {
			return nil, fmt.Errorf("%q is not OS/ARCH=FILE", arg)
		}
		binary, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		image, err := newImage(binary, *platform, version, revision)
		if err != nil {
			return nil, fmt.Errorf("image for %s: %w", platform, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: platform}})
	}
	return index, nil
}

func newImage(binary []byte, platform v1.Platform, version, revision string) (v1.Image, error) {
	layer, err := newLayer(binary)
	if err != nil {
		return nil, err
	}
	config := &v1.ConfigFile{
		OS: platform.OS, Architecture: platform.Architecture, Variant: platform.Variant, Created: v1.Time{Time: epoch},
		RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: []string{"/meshpulse"}, User: user, WorkingDir: "/", Env: []string{"PATH=/"},
			ExposedPorts: map[string]struct{}{"15090/tcp": {}, "6443/tcp": {}},
			Labels:       labels(version, revision),
		},
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.ConfigFile(base, config)
	if err != nil {
		return nil, err
	}
	return mutate.Append(image, mutate.Addendum{
		Layer: layer, MediaType: types.OCILayer, History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "make image"},
	})
}

// labels are what the image says of itself.
func labels(version, revision string) map[string]string {
	const oci = "org.opencontainers.image."
	return map[string]string{oci + "title": "meshpulse", oci + "licenses": "Apache-2.0", oci + "version": version, oci + "revision": revision}
}

// entry is a file or, with a name that ends in a slash, a folder of the root file system.
type entry struct {
	name    string
	mode    int64
	content []byte
}

// rootFS is all that is in the image; manifests/Dockerfile makes the same.
func rootFS(binary []byte) []entry {
	return []entry{
		{"etc/", 0o755, nil},
		{"etc/group", 0o644, []byte("root:x:0:\nnonroot:x:65532:\n")},
		{"etc/passwd", 0o644, []byte("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n")},
		{"meshpulse", 0o755, binary},
		{"tmp/", 0o1777, nil},
	}
}

func newLayer(binary []byte) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range rootFS(binary) {
		if err := writeEntry(w, e); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
}

// writeEntry writes a file or folder without anything that differs from one machine to the next.
func writeEntry(w *tar.Writer, e entry) error {
	header := &tar.Header{
		Name: e.name, Mode: e.mode, Size: int64(len(e.content)), Typeflag: tar.TypeReg, ModTime: epoch, Format: tar.FormatUSTAR,
	}
	if strings.HasSuffix(e.name, "/") {
		header.Typeflag = tar.TypeDir
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(e.content)
	return err
}
