package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const sixtyFour = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"

const testImage = "registry.example/team/meshpulse:1.2.3@sha256:" + sixtyFour

// released runs the program for two platforms and returns the folder that it has written.
func released(t *testing.T, image string) string {
	t.Helper()
	out := t.TempDir()
	args := []string{"-version", "1.2.3", "-image", image, "-root", "../../..", "-out", out}
	for _, platform := range []string{"darwin/arm64", "linux/amd64"} {
		binary := filepath.Join(t.TempDir(), "meshpulse")
		if err := os.WriteFile(binary, []byte("program for "+platform), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, platform+"="+binary)
	}
	if err := run(args); err != nil {
		t.Fatal(err)
	}
	return out
}

func content(t *testing.T, folder, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAReleaseHasTheSameBytesTwice(t *testing.T) {
	first, second := released(t, testImage), released(t, testImage)
	sums := content(t, first, checksums)
	if got := content(t, second, checksums); !bytes.Equal(sums, got) {
		t.Errorf("two releases differ:\n%s%s", sums, got)
	}
	var names []string
	for line := range strings.Lines(string(sums)) {
		sum, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if want := fmt.Sprintf("%x", sha256.Sum256(content(t, first, name))); sum != want {
			t.Errorf("%s has the sum %s, the list says %s", name, want, sum)
		}
		names = append(names, name)
	}
	want := []string{"meshpulse-1.2.3-darwin-arm64.tar.gz", "meshpulse-1.2.3-install.yaml", "meshpulse-1.2.3-linux-amd64.tar.gz", "meshpulse-1.2.3.tgz"}
	if !slices.Equal(names, want) {
		t.Errorf("there are %q, want %q", names, want)
	}
}

func TestEachArchiveHasItsPlatformsProgram(t *testing.T) {
	folder := released(t, testImage)
	for _, platform := range []string{"darwin/arm64", "linux/amd64"} {
		files := unpack(t, content(t, folder, "meshpulse-1.2.3-"+strings.ReplaceAll(platform, "/", "-")+".tar.gz"))
		if got := string(files["meshpulse-1.2.3/meshpulse"]); got != "program for "+platform {
			t.Errorf("%s: %q", platform, got)
		}
		if !bytes.Contains(files["meshpulse-1.2.3/LICENSE"], []byte("Apache License")) {
			t.Errorf("%s: no license", platform)
		}
	}
}

// unpack returns the files of an archive; programs can be executed.
func unpack(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(h.Name, "/meshpulse") && h.Mode&0o111 == 0 {
			t.Errorf("%s cannot be executed", h.Name)
		}
	}
}

func TestTheInstallFileIsWholeAndNamesTheVersion(t *testing.T) {
	text := string(content(t, released(t, testImage), "meshpulse-1.2.3-install.yaml"))
	kinds := map[string]int{}
	for document := range strings.SplitSeq(text, "\n---\n") {
		var o struct {
			Kind     string
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				Template struct {
					Metadata struct{ Labels map[string]string }
					Spec     struct{ Containers []struct{ Image string } }
				}
			}
		}
		if err := yaml.Unmarshal([]byte(document), &o); err != nil {
			t.Fatal(err)
		}
		kinds[o.Kind]++
		if got := o.Metadata.Labels["app.kubernetes.io/version"]; got != "1.2.3" {
			t.Errorf("a %s says version %q", o.Kind, got)
		}
		if o.Kind != "Deployment" {
			continue
		}
		if got := o.Spec.Template.Metadata.Labels["app.kubernetes.io/version"]; got != "1.2.3" {
			t.Errorf("the pod says version %q", got)
		}
		if got := o.Spec.Template.Spec.Containers[0].Image; got != testImage {
			t.Errorf("image %s", got)
		}
	}
	for _, kind := range []string{"Namespace", "Deployment", "Certificate", "APIService"} {
		if kinds[kind] == 0 {
			t.Errorf("no %s among %v", kind, kinds)
		}
	}
	if strings.Contains(text, "meshpulse:unset") {
		t.Error("an image is unset")
	}
}

func TestOnlyAnImageOfARegistryIsPinned(t *testing.T) {
	for image, want := range map[string]string{
		"meshpulse:1@sha256:0a":                  "meshpulse:1",
		"team/meshpulse:1@sha256:0a":             "team/meshpulse:1",
		"localhost/meshpulse:1@sha256:0a":        "localhost/meshpulse:1@sha256:0a",
		"registry:5000/meshpulse:1@sha256:0a":    "registry:5000/meshpulse:1@sha256:0a",
		"registry.example/a/meshpulse:1@sha256:": "registry.example/a/meshpulse:1@sha256:",
	} {
		if got := pinned(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

func TestBadCallsAreNamed(t *testing.T) {
	for want, args := range map[string][]string{
		"give -version":          {"-image", "x", "-out", t.TempDir()},
		`"linux" is not OS/ARCH`: {"-version", "1.2.3", "-image", "x", "-out", t.TempDir(), "linux"},
		"no such file":           {"-version", "1.2.3", "-image", "x", "-out", t.TempDir(), "linux/amd64=" + filepath.Join(t.TempDir(), "none")},
		"render the manifests: ": {"-version", "1.2.3", "-image", "x", "-out", t.TempDir(), "-root", t.TempDir()},
	} {
		if err := run(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}
