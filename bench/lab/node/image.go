package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// image stands in for one that a cluster would pull: programs of this machine and the libraries
// they name, nothing else. meshpulse's own is `make image`'s.
type image struct {
	name string
	// files are paths inside by where they come from.
	files      map[string]string
	entrypoint []string
	// user is user:group.
	user string
}

// write writes the image as a tar with an OCI layout of one layer.
func (i image) write(file string) error {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for target, source := range i.files {
		content, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		if err := addFile(w, target, 0o755, content); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	blobs := map[string][]byte{}
	blob := func(mediaType string, content []byte) map[string]any {
		digest := fmt.Sprintf("%x", sha256.Sum256(content))
		blobs["blobs/sha256/"+digest] = content
		return map[string]any{"mediaType": mediaType, "digest": "sha256:" + digest, "size": len(content)}
	}
	const oci = "application/vnd.oci.image."
	rootFS := blob(oci+"layer.v1.tar", layer.Bytes())
	config := blob(oci+"config.v1+json", toJSON(map[string]any{
		"architecture": runtime.GOARCH, "os": runtime.GOOS,
		"config": map[string]any{"Entrypoint": i.entrypoint, "User": i.user, "WorkingDir": "/", "Env": []string{"PATH=/usr/local/bin:/usr/sbin:/"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []any{rootFS["digest"]}},
	}))
	manifest := blob(oci+"manifest.v1+json", toJSON(map[string]any{
		"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "config": config, "layers": []any{rootFS},
	}))
	manifest["annotations"] = map[string]string{"io.containerd.image.name": i.name}
	blobs["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	blobs["index.json"] = toJSON(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}})
	return writeTar(file, blobs)
}

func writeTar(file string, contents map[string][]byte) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // checked below where it counts
	w := tar.NewWriter(f)
	for name, content := range contents {
		if err := addFile(w, name, 0o644, content); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

func addFile(w *tar.Writer, name string, mode int64, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// toJSON is for what this package has built of plain values, which cannot fail.
func toJSON(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

// libraries are the shared libraries of a program, as paths inside by where they are here.
func (l *lab) libraries(program string) (map[string]string, error) {
	listed, err := output(context.Background(), 10*time.Second, "ldd", program)
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, match := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllStringSubmatch(listed, -1) {
		files[l.target(match[1])] = match[1]
	}
	return files, nil
}

// ofNode is how many of images a node cannot be ready without: the first ones.
const ofNode = 2

// target is where a file of the machine's, or of get-tools', is in an image.
func (l *lab) target(file string) string {
	return strings.TrimPrefix(strings.TrimPrefix(file, filepath.Join(l.tools, "root")), "/")
}

// images are those of the node, of the guides' app, and of the sidecars. The app's and the load
// tester's names are the manifests'.
func (l *lab) images() ([]image, error) {
	envoy, err := filepath.EvalSymlinks(filepath.Join(l.root, ".cache/envoy/envoy"))
	if err != nil {
		return nil, err
	}
	images := []image{
		{"lab.local/pause:lab", map[string]string{"pod": l.binary("pod")}, []string{"/pod", "pause"}, "65532:65532"},
		{"lab.local/coredns:lab", map[string]string{"coredns": l.binary("coredns-" + corednsVersion)}, []string{"/coredns"}, "0:0"},
		{"ghcr.io/stefanprodan/podinfo:6.7.1", map[string]string{"podinfo": l.binary("podinfo")}, []string{"/podinfo"}, "100:101"},
		{"ghcr.io/fluxcd/flagger-loadtester:0.34.0", map[string]string{
			"loadtester": l.binary("pod"), "usr/local/bin/hey": l.binary("hey"),
		}, []string{"/loadtester"}, "100:101"},
	}
	if l.istio {
		istio, err := l.istioImages(envoy)
		return append(images, istio...), err
	}
	sidecar, err := l.libraries(envoy)
	if err != nil {
		return nil, err
	}
	sidecar["usr/local/bin/envoy"] = envoy
	sidecar["pod"] = l.binary("pod")
	return append(images, image{sidecarImage, sidecar, []string{"/pod", "sidecar"}, "1337:1337"}), nil
}
