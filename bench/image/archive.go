package main

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// writeArchive writes an OCI layout as a tar. Its one entry carries the image's name for containerd
// and, as the specification has it, its tag for the others. The file is there whole or not at all.
func writeArchive(file string, tag name.Tag, index v1.ImageIndex) (err error) {
	dir, err := os.MkdirTemp("", "image")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	names := map[string]string{"io.containerd.image.name": tag.Name(), "org.opencontainers.image.ref.name": tag.TagStr()}
	if err := l.AppendIndex(index, layout.WithAnnotations(names)); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	part := file + ".part"
	f, err := os.Create(part)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(part)
		}
	}()
	w := tar.NewWriter(f)
	err = writeFolder(w, os.DirFS(dir))
	for _, finish := range []func() error{w.Close, f.Close} {
		if e := finish(); err == nil {
			err = e
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.Rename(part, file)
}

// writeFolder writes its files by name.
func writeFolder(w *tar.Writer, folder fs.FS) error {
	return fs.WalkDir(folder, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(folder, path)
		if err != nil {
			return err
		}
		return writeEntry(w, entry{path, 0o644, content})
	})
}
