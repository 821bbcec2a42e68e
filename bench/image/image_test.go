package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// binaries writes a file for each architecture and returns the arguments that name them.
func binaries(t *testing.T) []string {
	t.Helper()
	var args []string
	for _, arch := range []string{"amd64", "arm64"} {
		file := filepath.Join(t.TempDir(), "meshpulse")
		if err := os.WriteFile(file, []byte("binary for "+arch), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "linux/"+arch+"="+file)
	}
	return args
}

func TestTheSameBinariesGiveTheSameArchive(t *testing.T) {
	var archives [][]byte
	for range 2 {
		out := filepath.Join(t.TempDir(), "image.tar")
		args := append([]string{"-name", "registry.example/team/meshpulse:1", "-out", out, "-revision", "abc"}, binaries(t)...)
		if err := run(t.Context(), args); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, b)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two archives of the same binaries differ")
	}
	var layout struct {
		Manifests []struct{ Annotations map[string]string }
	}
	if err := json.Unmarshal(file(t, archives[0], "index.json"), &layout); err != nil {
		t.Fatal(err)
	}
	if len(layout.Manifests) != 1 || layout.Manifests[0].Annotations["io.containerd.image.name"] != "registry.example/team/meshpulse:1" {
		t.Errorf("the archive names %+v", layout.Manifests)
	}
	if got := string(file(t, archives[0], "oci-layout")); !strings.Contains(got, `"imageLayoutVersion"`) {
		t.Errorf("oci-layout is %q", got)
	}
}

// file returns a file of a tar.
func file(t *testing.T, archive []byte, path string) []byte {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if h.Name == path {
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
}

func TestEveryPlatformRunsItsOwnBinaryAsNobody(t *testing.T) {
	index, err := newIndex(binaries(t), "1.2", "abc")
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 2 {
		t.Fatalf("%d images, want 2", len(manifest.Manifests))
	}
	for _, m := range manifest.Manifests {
		image, err := index.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, image, m.Platform.Architecture)
	}
}

func checkImage(t *testing.T, image v1.Image, arch string) {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := config.Config
	if config.Architecture != arch || c.User != "65532:65532" || !slices.Equal(c.Entrypoint, []string{"/meshpulse"}) || c.Labels["org.opencontainers.image.revision"] != "abc" || c.Labels["org.opencontainers.image.version"] != "1.2" {
		t.Errorf("%s: %+v", arch, config)
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%s: %d layers, %v", arch, len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(content)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(file(t, b, "meshpulse")); got != "binary for "+arch {
		t.Errorf("the image for %s runs the %s", arch, got)
	}
}

// TestTheDockerfileMakesTheSame holds the other way to the image to the files that this one has.
func TestTheDockerfileMakesTheSame(t *testing.T) {
	dockerfile, err := os.ReadFile("../../manifests/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, last, found := strings.Cut(string(dockerfile), "\nFROM scratch\n")
	if !found {
		t.Fatal("the Dockerfile's last stage is not FROM scratch")
	}
	for _, line := range []string{"USER " + user, "EXPOSE 15090 6443", `ENTRYPOINT ["/meshpulse"]`} {
		if !strings.Contains(last, line) {
			t.Errorf("the Dockerfile lacks %s", line)
		}
	}
	for name, value := range labels("$VERSION", "$COMMIT") {
		if label := name + `="` + value + `"`; !strings.Contains(last, label) {
			t.Errorf("the Dockerfile lacks the label %s", label)
		}
	}
	for _, e := range rootFS(nil) {
		for line := range strings.Lines(string(e.content)) {
			if !strings.Contains(string(dockerfile), strings.TrimSpace(line)) {
				t.Errorf("the Dockerfile's /%s lacks %s", e.name, line)
			}
		}
	}
}

func TestTheBillOfMaterialsHasTheBinarysModules(t *testing.T) {
	info := &debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Path: "github.com/meshpulse/meshpulse"}, Deps: []*debug.Module{
		{Path: "k8s.io/api", Version: "v0.37.0"},
		{Path: "github.com/Some/Old", Version: "v2.0.0+incompatible"},
		{Path: "example.org/left", Version: "v1.0.0", Replace: &debug.Module{Path: "example.org/taken", Version: "v1.0.1"}},
	}}
	got := newBOM(info, "1.2")
	if got.Metadata.Component.PURL != "pkg:golang/github.com/meshpulse/meshpulse@1.2" {
		t.Errorf("%+v", got.Metadata)
	}
	var purls []string
	for _, c := range got.Components {
		purls = append(purls, c.PURL)
	}
	want := []string{
		"pkg:golang/example.org/taken@v1.0.1", "pkg:golang/github.com/some/old@v2.0.0%2Bincompatible", "pkg:golang/k8s.io/api@v0.37.0",
		"pkg:golang/stdlib@1.26.8",
	}
	if !slices.Equal(purls, want) {
		t.Errorf("%q, want %q", purls, want)
	}
}

func TestABillOfMaterialsStandsBesideTheArchive(t *testing.T) {
	self, err := os.Executable() // a Go binary, which has modules
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "image.tar")
	if err := run(t.Context(), []string{"-name", "meshpulse:1", "-out", out, "-sbom", "-version", "1", "linux/amd64=" + self}); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(strings.TrimSuffix(out, ".tar") + "-linux-amd64.cdx.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"bomFormat": "CycloneDX"`, `"name": "github.com/google/go-containerregistry"`} {
		if !strings.Contains(string(content), want) {
			t.Errorf("no %s in\n%s", want, content)
		}
	}
}

func TestBadArgumentsAreNamed(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no output":     {[]string{"linux/amd64=x"}, "-out FILE"},
		"no binary":     {[]string{"-out", "x"}, "PLATFORM=FILE"},
		"no platform":   {[]string{"-out", "x", "meshpulse"}, `"meshpulse" is not OS/ARCH=FILE`},
		"no such file":  {[]string{"-out", "x", "linux/amd64=" + filepath.Join(t.TempDir(), "none")}, "no such file"},
		"no name":       {[]string{"-name", "UPPER CASE", "-out", "x", "linux/amd64=x"}, "-name"},
		"no such place": {append([]string{"-out", filepath.Join(t.TempDir(), "none", "image.tar")}, binaries(t)...), "no such file"},
	} {
		if err := run(t.Context(), tc.args); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestAnArchiveIsThereWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "image.tar")
	if err := os.Mkdir(out, 0o700); err != nil { // cannot be replaced by a file
		t.Fatal(err)
	}
	tag, err := name.NewTag("meshpulse:1")
	if err != nil {
		t.Fatal(err)
	}
	index, err := newIndex(binaries(t), "", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := writeArchive(out, tag, index); err == nil {
		t.Fatal("a folder was replaced")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
