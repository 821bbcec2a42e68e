package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// cgroupPrefix begins the name of a run's folder of control groups; the number of its process
// follows.
const cgroupPrefix = "/meshpulse-lab-"

const cgroups = "/sys/fs/cgroup"

// picture is what a run could leave on the host, as sets of lines by kind.
type picture map[string][]string

// changing are settings that tell of the machine's work, not of what somebody has set.
var changing = regexp.MustCompile(`^/proc/sys/(kernel/(random/|ns_last_pid|pty/nr|perf_event_max_sample_rate)|net/netfilter/nf_conntrack_count|vm/stat_refresh)`)

// look takes the picture. What another run has made in its own name meanwhile is not in it.
func (l *lab) look() (picture, error) {
	p := picture{}
	for _, name := range []string{"/", "/etc", "/opt", "/usr/libexec", "/var/lib", "/run/netns", cgroups} {
		entries, err := os.ReadDir(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, entry := range entries {
			if l.ours(entry.Name()) {
				p["entries of "+name] = append(p["entries of "+name], entry.Name())
			}
		}
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range interfaces {
		p["interfaces"] = append(p["interfaces"], i.Name)
	}
	for _, hierarchy := range hierarchies(cgroups) {
		if reach, err := os.ReadFile(filepath.Join(hierarchy, "cgroup.subtree_control")); err == nil {
			p["controllers"] = append(p["controllers"], hierarchy+": "+strings.TrimSpace(string(reach)))
		}
		entries, err := os.ReadDir(hierarchy)
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			if group := filepath.Join(hierarchy, entry.Name()); entry.IsDir() && l.ours(entry.Name()) && !occupied(group) {
				p["control groups"] = append(p["control groups"], group)
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	p["mounts"] = strings.Split(string(mounts), "\n")
	rules, err := l.rules()
	if err != nil {
		return nil, err
	}
	p["firewall rules"] = strings.Split(rules, "\n")
	p["settings"] = settings()
	return p, l.addProcesses(p)
}

// rules are the host's firewall rules without their counters.
func (l *lab) rules() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "env", append(l.environment(), "nft", "--stateless", "list", "ruleset")...)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("nft list ruleset (a kernel without nf_tables has no node): %w", err)
	}
	legacy, err := os.ReadFile("/proc/net/ip_tables_names")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return string(out) + string(legacy), nil
}

func settings() []string {
	var all []string
	for _, root := range []string{"/proc/sys/kernel", "/proc/sys/vm", "/proc/sys/net"} {
		// What cannot be read is not readable to a kubelet either, or has gone with its interface.
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || changing.MatchString(path) {
				return nil
			}
			if value, err := os.ReadFile(path); err == nil {
				all = append(all, path+" = "+strings.TrimSpace(string(value)))
			}
			return nil
		})
	}
	return all
}

// ours is false for control groups that another run has named.
func (l *lab) ours(name string) bool {
	return !strings.HasPrefix("/"+name, cgroupPrefix) || strings.HasPrefix("/"+name, l.cgroup)
}

// occupied says whether something runs in a control group. Then it is somebody else's, since
// nothing of a node does before or after it.
func occupied(group string) bool {
	found := false
	_ = filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error { // in one that has gone nothing runs
		if err == nil && d.Name() == "cgroup.procs" {
			running, _ := os.ReadFile(path)
			found = found || len(running) > 0
		}
		return nil
	})
	return found
}

// addProcesses adds those of the node, by what every program of it is told in its environment or on
// its command line: the run's folder. Containers' own are not told it; their shim is, and none of
// them outlives the first process of its namespaces.
func (l *lab) addProcesses(p picture) error {
	return processes(func(pid int, command []string) bool {
		environment, _ := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "environ")) // of one that has ended there is none
		for _, where := range []string{strings.Join(command, " "), string(environment)} {
			if strings.Contains(where, l.state) {
				p["processes"] = append(p["processes"], fmt.Sprint(pid, " ", strings.Join(command, " ")))
				break
			}
		}
		return true
	})
}

// asItWas is an error that says what of the host is not as it was. The kernel takes a moment to let
// go of what has ended.
func (l *lab) asItWas(before picture) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		after, err := l.look()
		if err != nil {
			return err
		}
		if err = before.same(after); err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// same is an error that says what one picture has and the other has not.
func (p picture) same(after picture) error {
	var errs []error
	kinds := map[string]bool{}
	for kind := range p {
		kinds[kind] = true
	}
	for kind := range after {
		kinds[kind] = true
	}
	for kind := range kinds {
		for _, line := range after[kind] {
			if !slices.Contains(p[kind], line) {
				errs = append(errs, fmt.Errorf("left on the host, in %s: %s", kind, line))
			}
		}
		for _, line := range p[kind] {
			if !slices.Contains(after[kind], line) {
				errs = append(errs, fmt.Errorf("gone from the host, of %s: %s", kind, line))
			}
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// hierarchies are the roots of the control groups: one each controller with version 1, one with
// version 2.
func hierarchies(root string) []string {
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		return []string{root}
	}
	all, _ := filepath.Glob(filepath.Join(root, "*", "cgroup.procs")) // the pattern is right
	for i, file := range all {
		all[i] = filepath.Dir(file)
	}
	return all
}

// makeCgroups makes the folder that the kubelet is to find in each hierarchy, with every controller
// in it. It returns which controllers it had to let reach there, with version 2, so that tidy can
// take them back.
func (l *lab) makeCgroups(root string) (enabled []string, err error) {
	all := hierarchies(root)
	if len(all) == 0 {
		return nil, fmt.Errorf("no control groups in %s: a kubelet cannot run", root)
	}
	for _, hierarchy := range all {
		if err := os.Mkdir(filepath.Join(hierarchy, l.cgroup), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("control group (is %s writable?): %w", hierarchy, err)
		}
	}
	there, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // version 1 has a hierarchy for each
	}
	if err != nil {
		return nil, err
	}
	reach, err := os.ReadFile(filepath.Join(root, "cgroup.subtree_control"))
	if err != nil {
		return nil, err
	}
	for _, controller := range strings.Fields(string(there)) {
		if !slices.Contains(strings.Fields(string(reach)), controller) {
			enabled = append(enabled, controller)
		}
	}
	return enabled, subtree(root, "+", enabled)
}

// subtree lets controllers reach the folders below the root (+), or no more (-).
func subtree(root, sign string, controllers []string) error {
	if len(controllers) == 0 {
		return nil
	}
	return os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte(sign+strings.Join(controllers, " "+sign)), 0)
}

// tidy removes what does not end with the namespaces: the control groups, empty by now, with the
// controllers that were let reach them, and the run's state.
func (l *lab) tidy(enabled []string) error {
	var errs []error
	for _, hierarchy := range hierarchies(cgroups) {
		errs = append(errs, removeCgroups(filepath.Join(hierarchy, l.cgroup)))
	}
	return errors.Join(append(errs, subtree(cgroups, "-", enabled), l.keepLogs(), os.RemoveAll(l.state))...)
}

// tidyKilled removes the control groups of runs that were killed before they could.
func (l *lab) tidyKilled() error {
	var errs []error
	for _, hierarchy := range hierarchies(cgroups) {
		left, err := filepath.Glob(filepath.Join(hierarchy, cgroupPrefix+"*"))
		errs = append(errs, err)
		for _, folder := range left {
			pid, _, _ := strings.Cut(strings.TrimPrefix(folder, filepath.Join(hierarchy, cgroupPrefix)), "-")
			if _, err := os.Stat(filepath.Join("/proc", pid)); errors.Is(err, os.ErrNotExist) {
				errs = append(errs, removeCgroups(folder))
			}
		}
	}
	return errors.Join(errs...)
}

// removeCgroups removes a folder with those below it.
func removeCgroups(root string) error {
	var folders []string
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error { // one that is not there has nothing below it
		if err == nil && d.IsDir() {
			folders = append(folders, path)
		}
		return nil
	})
	var errs []error
	for _, folder := range slices.Backward(folders) { // children first
		errs = append(errs, removeCgroup(folder))
	}
	return errors.Join(errs...)
}

// removeCgroup removes a folder whose processes have been killed; the kernel may take a moment to
// see that.
func removeCgroup(folder string) error {
	for range 100 {
		err := os.Remove(folder)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return os.Remove(folder)
}

// kernelHas is an error where the kernel does not know the file system and cannot load it.
func kernelHas(filesystem string) error {
	_ = exec.Command("modprobe", filesystem).Run() // where there are modules
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(string(known)), filesystem) {
		return fmt.Errorf("the kernel has no file system %q, which containers need", filesystem)
	}
	return nil
}
