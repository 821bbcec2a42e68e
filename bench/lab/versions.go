package main

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// versions name the programs of a run, for the reports, and how busy the machine is now that it
// ends. meshpulse's is the commit of the tree that it was built from.
func (l *lab) versions() []string {
	all := []string{"Kubernetes " + kubeVersion, runtime.Version()}
	if out, err := exec.Command(l.envoy, "--version").Output(); err == nil {
		// "PATH  version: HASH/1.40.0/Clean/RELEASE/BoringSSL"
		_, version, _ := strings.Cut(string(out), "version:")
		if parts := strings.Split(version, "/"); len(parts) > 1 {
			all = append(all, "Envoy "+parts[1])
		}
	}
	if commit := l.git("rev-parse", "--short", "HEAD"); commit != "" {
		// The results of a run before this one do not change what is measured.
		if l.git("status", "--porcelain", "--", ".", ":(exclude)bench/results") != "" {
			commit += "-dirty"
		}
		all = append(all, "meshpulse "+commit)
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		all = append(all, "the machine's load over 1, 5 and 15 minutes in the end "+strings.Join(strings.Fields(string(b))[:3], ", "))
	}
	return all
}

// git is what a git command prints, nothing where there is no repository.
func (l *lab) git(args ...string) string {
	cmd := exec.Command("git", args...)
	cmd.Dir = l.root
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
