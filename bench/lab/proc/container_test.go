package proc

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/bench/process"
)

// hierarchy is a file system that looks like one of control groups.
func hierarchy(t *testing.T, files map[string]string) (root string) {
	root = t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// filesOf is what is in a folder.
func filesOf(t *testing.T, folder string) map[string]string {
	files := map[string]string{}
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, folder+"/")] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestAContainerIsAControlGroupWithAMemoryLimit(t *testing.T) {
	for name, tc := range map[string]struct {
		there  map[string]string
		folder string
		limits map[string]string
		peaks  map[string]string
		reach  string // afterwards
	}{
		"version 1": {
			there: map[string]string{"memory/cgroup.procs": ""}, folder: "memory/x",
			limits: map[string]string{"memory.limit_in_bytes": "1024", "memory.kmem.tcp.limit_in_bytes": "1024"},
			peaks:  map[string]string{"memory.max_usage_in_bytes": "500\n", "memory.kmem.tcp.max_usage_in_bytes": "100\n"},
		},
		"version 2": {
			there: map[string]string{"cgroup.controllers": "cpu memory\n", "cgroup.subtree_control": "cpu\n"}, folder: "x",
			limits: map[string]string{"memory.max": "1024"}, peaks: map[string]string{"memory.peak": "600\n"}, reach: "-memory",
		},
		"version 2, as systemd has it": {
			there: map[string]string{"cgroup.controllers": "cpu memory\n", "cgroup.subtree_control": "cpu memory pids\n"}, folder: "x",
			limits: map[string]string{"memory.max": "1024"}, peaks: map[string]string{"memory.peak": "600\n"}, reach: "cpu memory pids\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := hierarchy(t, tc.there)
			c, err := NewContainer(root, "x", 1024)
			if err != nil {
				t.Fatal(err)
			}
			folder := filepath.Join(root, tc.folder)
			if diff := cmp.Diff(tc.limits, filesOf(t, folder)); diff != "" {
				t.Errorf("limits (-want +got):\n%s", diff)
			}
			for file, content := range tc.peaks {
				if err := os.WriteFile(filepath.Join(folder, file), []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if peak, err := c.Peak(); err != nil || peak != 600 {
				t.Errorf("the peak is %d: %v", peak, err)
			}
			command := c.Command("sh", "-c", "echo it runs")
			p, err := process.Start(filepath.Join(root, "log"), command[0], command[1:]...)
			if err != nil {
				t.Fatal(err)
			}
			<-p.Exited()
			if got := filesOf(t, folder)["cgroup.procs"]; p.Tail(1) != "it runs" || strings.TrimSpace(got) != strconv.Itoa(p.PID()) {
				t.Errorf("in the group is %q, said is %q", got, p.Tail(1))
			}
			for file := range filesOf(t, folder) { // control groups go with their files
				_ = os.Remove(filepath.Join(folder, file))
			}
			if err := c.Remove(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the folder is still there: %v", err)
			}
			if got := filesOf(t, root)["cgroup.subtree_control"]; got != tc.reach {
				t.Errorf("controllers that reach: %q, want %q", got, tc.reach)
			}
		})
	}
}

func TestWithoutControlGroupsThereIsNoContainer(t *testing.T) {
	if _, err := NewContainer(t.TempDir(), "x", 1024); err == nil || !strings.Contains(err.Error(), "control group: ") {
		t.Errorf("made: %v", err)
	}
}
