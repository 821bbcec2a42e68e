package main

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// planned are the commands that make would run at the project's root.
func planned(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("make", append([]string{"-n", "--no-print-directory"}, args...)...)
	cmd.Dir = "../../.."
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// The version that a release is made of is told to the program, which /metrics and `meshpulse
// version` tell it by, to the image's labels, and to what is installed, whose pod has it as a
// label.
func TestAReleaseTellsItsVersionToEachOfItsParts(t *testing.T) {
	commands := planned(t, "release", "VERSION=1.2.3-rc.1", "IMAGE=registry.example/meshpulse:1.2.3-rc.1")
	for _, want := range []string{
		`-ldflags "-s -w -X main.commit=\S+ -X main.release=1\.2\.3-rc\.1"`,
		`bin/image/image -name registry\.example/meshpulse:1\.2\.3-rc\.1 -version 1\.2\.3-rc\.1 -revision \S+ -out bin/release/meshpulse-1\.2\.3-rc\.1-image\.tar -sbom`,
		`bin/image/release -version 1\.2\.3-rc\.1 -image "\$image" -out bin/release`,
	} {
		if !regexp.MustCompile(want).MatchString(commands) {
			t.Errorf("no %s among\n%s", want, commands)
		}
	}
	platforms := regexp.MustCompile(`(\w+/\w+)=bin/image/meshpulse-(\w+)-(\w+)`).FindAllStringSubmatch(commands, -1)
	var given []string
	for _, p := range platforms {
		if p[1] != p[2]+"/"+p[3] {
			t.Errorf("%s is given the program of %s/%s", p[1], p[2], p[3])
		}
		given = append(given, p[1])
	}
	image, archives := []string{"linux/amd64", "linux/arm64"}, []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64"}
	if want := slices.Concat(image, archives); !slices.Equal(given, want) {
		t.Errorf("of the image and the archives are %v, want %v", given, want)
	}
	// The image that is pushed afterwards is of the same programs.
	pushed := planned(t, "push", "VERSION=1.2.3-rc.1", "IMAGE=registry.example/meshpulse:1.2.3-rc.1")
	if !strings.Contains(pushed, "-X main.release=1.2.3-rc.1\"") {
		t.Errorf("make push has another version:\n%s", pushed)
	}
}
