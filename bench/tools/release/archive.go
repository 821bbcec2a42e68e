package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// entry is a file of an archive.
type entry struct {
	name    string
	mode    int64
	content []byte
}

// writeArchive writes a compressed tar without anything that differs from one machine to the next.
func writeArchive(file string, entries []entry) error {
	var b bytes.Buffer
	compressed := gzip.NewWriter(&b)
	w := tar.NewWriter(compressed)
	for _, e := range entries {
		header := &tar.Header{
			Name: e.name, Mode: e.mode, Size: int64(len(e.content)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
		}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if _, err := w.Write(e.content); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := compressed.Close(); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

// writeCommandLine writes the archive of the program for one platform.
func (r release) writeCommandLine(platform, binary string) error {
	program, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	license, err := os.ReadFile(filepath.Join(r.root, "LICENSE"))
	if err != nil {
		return err
	}
	folder := "meshpulse-" + r.version + "/"
	return writeArchive(r.file("-"+strings.ReplaceAll(platform, "/", "-")+".tar.gz"),
		[]entry{{folder + "LICENSE", 0o644, license}, {folder + "meshpulse", 0o755, program}})
}

// checksums is the file that sha256sum -c takes.
const checksums = "SHA256SUMS"

// writeChecksums writes those of every file of a folder, by name.
func writeChecksums(folder string) error {
	files, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for _, f := range files {
		if f.Name() == checksums {
			continue
		}
		content, err := os.ReadFile(filepath.Join(folder, f.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%x  %s\n", sha256.Sum256(content), f.Name())
	}
	return os.WriteFile(filepath.Join(folder, checksums), b.Bytes(), 0o644)
}
