package main

import (
	"debug/buildinfo"
	"os/exec"
	"runtime"
	"strings"
)

// versions name the programs of a run, for the reports. meshpulse's is the commit that its binary was built from.
func (l *lab) versions() []string {
	all := []string{"Kubernetes " + kubeVersion, runtime.Version()}
	if out, err := exec.Command(l.envoy, "--version").Output(); err == nil {
		// "PATH  version: HASH/1.40.0/Clean/RELEASE/BoringSSL"
		_, version, _ := strings.Cut(string(out), "version:")
		if parts := strings.Split(version, "/"); len(parts) > 1 {
			all = append(all, "Envoy "+parts[1])
		}
	}
	info, err := buildinfo.ReadFile(l.meshpulse)
	if err != nil {
		return all
	}
	commit, changed := "of an unknown commit", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = " with uncommitted changes"
		}
	}
	return append(all, "meshpulse "+commit+changed)
}
