package main

import (
	"os/exec"
	"runtime"
	"strings"
)

// versions name the programs of a run, for the reports. meshpulse's is the commit of the tree that it was built from.
func (l *lab) versions() []string {
	all := []string{"Kubernetes " + kubeVersion, runtime.Version()}
	if out, err := exec.Command(l.envoy, "--version").Output(); err == nil {
		// "PATH  version: HASH/1.40.0/Clean/RELEASE/BoringSSL"
		_, version, _ := strings.Cut(string(out), "version:")
		if parts := strings.Split(version, "/"); len(parts) > 1 {
			all = append(all, "Envoy "+parts[1])
		}
	}
	cmd := exec.Command("git", "describe", "--always", "--dirty")
	cmd.Dir = l.root
	if out, err := cmd.Output(); err == nil {
		all = append(all, "meshpulse "+strings.TrimSpace(string(out)))
	}
	return all
}
