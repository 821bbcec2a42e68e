package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// writeChart writes the chart as Helm packages it, with the release's version and image in it.
func (r release) writeChart() error {
	chart := os.DirFS(filepath.Join(r.root, "manifests", "chart"))
	var entries []entry
	err := fs.WalkDir(chart, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(chart, path)
		if err == nil {
			content, err = r.release(path, content)
		}
		entries = append(entries, entry{"meshpulse/" + path, 0o644, content})
		return err
	})
	if err != nil {
		return fmt.Errorf("package the chart: %w", err)
	}
	return writeArchive(r.file(".tgz"), entries)
}

// release returns what a file of the chart is in the release.
func (r release) release(path string, content []byte) ([]byte, error) {
	name, digest, _ := strings.Cut(r.image, "@")
	colon := strings.LastIndexByte(name, ':')
	if colon <= strings.LastIndexByte(name, '/') {
		return nil, fmt.Errorf("image %s has no tag", r.image)
	}
	repository, tag := name[:colon], name[colon+1:]
	var replaced [][2]string
	switch path {
	case "Chart.yaml":
		replaced = [][2]string{
			{"\nversion: 0.0.0-dev # `make release` writes the release's, here and below\n", "\nversion: " + r.version + "\n"},
			{"\nappVersion: 0.0.0-dev\n", "\nappVersion: " + r.version + "\n"},
		}
	case "values.yaml":
		replaced = [][2]string{
			{"\n  repository: meshpulse\n", "\n  repository: " + repository + "\n"},
			{"\n  tag: \"\" ", "\n  tag: \"" + tag + "\" "},
			{"\n  digest: \"\" ", "\n  digest: \"" + digest + "\" "},
		}
	}
	for _, pair := range replaced {
		if bytes.Count(content, []byte(pair[0])) != 1 {
			return nil, fmt.Errorf("%s has no single %q", path, pair[0])
		}
		content = bytes.Replace(content, []byte(pair[0]), []byte(pair[1]), 1)
	}
	return content, nil
}
