package manifests

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestScriptsParse(t *testing.T) {
	for _, script := range []string{"install.sh", "uninstall.sh", "testdata/kubectl"} {
		if out, err := exec.Command("sh", "-n", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
		if info, err := os.Stat(script); err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("%s cannot be executed (%v)", script, err)
		}
	}
}

func TestDryRunsChangeNothing(t *testing.T) {
	for name, args := range map[string][]string{
		"install":   {"install.sh", "--image", "r.example/meshpulse:1", "--dry-run"},
		"rotate":    {"install.sh", "--rotate-cert", "--dry-run"},
		"uninstall": {"uninstall.sh", "--dry-run"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newFakeCluster(t, "")
			c.mustRun("install.sh", "--image", "r.example/meshpulse:1")
			before := c.changes()
			if out := c.mustRun(args[0], args[1:]...); !strings.Contains(out, "would") {
				t.Errorf("it does not say what it would do:\n%s", out)
			}
			if after := c.changes(); len(after) != len(before) {
				t.Errorf("it changed the cluster: %q", after[len(before):])
			}
		})
	}
}

func TestArgumentsThatAreRefused(t *testing.T) {
	for name, args := range map[string][]string{
		"no image":                  {"install.sh"},
		"an image that is YAML":     {"install.sh", "--image", "x\n      hostNetwork: true"},
		"an image that ends sed":    {"install.sh", "--image", "x|e id"},
		"a word":                    {"install.sh", "please"},
		"rotation with an image":    {"install.sh", "--rotate-cert", "--image", "x"},
		"no component":              {"install.sh", "--image", "x", "--component"},
		"a foreign component":       {"install.sh", "--image", "x", "--component", "../../x"},
		"rotation with a component": {"install.sh", "--rotate-cert", "--component", "dns"},
		"uninstall with a word":     {"uninstall.sh", "please"},
		"uninstall with two words":  {"uninstall.sh", "--dry-run", "please"},
		"uninstall with nothing":    {"uninstall.sh", "", "--dry-run"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newFakeCluster(t, "")
			if out, err := c.run(args[0], args[1:]...); err == nil {
				t.Errorf("it is taken:\n%s", out)
			}
			if log := c.read("log"); log != "" {
				t.Errorf("kubectl was called: %s", log)
			}
		})
	}
}

// An option that took the next one as its value would not only miss it: --dry-run would be done for
// real.
func TestAnOptionDoesNotTakeTheNextOneAsItsValue(t *testing.T) {
	for _, option := range []string{"--image", "--component"} {
		for name, args := range map[string][]string{
			"the next option":       {option, "--dry-run"},
			"the next option, with": {option + "=--dry-run"},
			"nothing":               {option, ""},
			"nothing, with":         {option + "="},
			"the end":               {option},
		} {
			t.Run(option+" and "+name, func(t *testing.T) {
				c := newFakeCluster(t, "")
				out, err := c.run("install.sh", append([]string{"--image", "r.example/meshpulse:1"}, args...)...)
				if err == nil || !strings.Contains(out, option+" needs a value") {
					t.Errorf("%v\n%s", err, out)
				}
				if log := c.read("log"); log != "" {
					t.Errorf("kubectl was called: %s", log)
				}
			})
		}
	}
}

// What could only fail at its end is told before anything is built.
func TestMakeTellsBeforeItBuilds(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"push without an image":     {[]string{"push"}, "names no registry: give IMAGE="},
		"push without a registry":   {[]string{"push", "IMAGE=team/meshpulse:1.2"}, "IMAGE=team/meshpulse:1.2 names no registry"},
		"release without a version": {[]string{"release", "VERSION=abc"}, "VERSION=abc is no version: give one such as"},
		"run without the Envoy":     {[]string{"run", "ENVOY_BIN=/nope"}, "ENVOY_BIN=/nope is not a program"},
		"run with a folder for one": {[]string{"run", "ENVOY_BIN=/tmp"}, "ENVOY_BIN=/tmp is not a program"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("make", append([]string{"-C", "..", "GO=false"}, tc.args...)...)
			cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
				return strings.HasPrefix(v, "IMAGE=") || strings.HasPrefix(v, "MAKEFLAGS=") || strings.HasPrefix(v, "ENVOY_BIN=")
			})
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), tc.want) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
