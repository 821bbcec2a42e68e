package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// plant leaves one of each kind that a run could leave on a host, and is an error when the
// comparison at a run's end would not see it. The node's own namespaces play the host, so that
// nothing of it is left on the real one.
func (n *node) plant(ctx context.Context) (err error) {
	before, err := n.look()
	if err != nil {
		return err
	}
	process := exec.Command("sleep", "600")
	if err := process.Start(); err != nil {
		return err
	}
	mount, setting, folder := filepath.Join(n.state, "planted"), "/proc/sys/net/ipv4/ip_default_ttl", "/var/lib/planted"
	group := filepath.Join(hierarchies(cgroups)[0], n.cgroup+"-planted")
	was, err := os.ReadFile(setting)
	if err != nil {
		return err
	}
	run := func(command string) error {
		_, err := output(ctx, stepLimit, strings.Fields(command)...)
		return err
	}
	defer func() {
		_ = process.Process.Kill()
		_ = process.Wait() // was killed
		err = errors.Join(err, syscall.Unmount(mount, 0), os.WriteFile(setting, was, 0), os.Remove(folder), os.Remove(group),
			run("ip link delete planted0"), run("nft delete table inet planted"))
	}()
	err = errors.Join(os.Mkdir(mount, 0o700), syscall.Mount("planted", mount, "tmpfs", 0, ""), os.WriteFile(setting, []byte("63"), 0),
		os.Mkdir(folder, 0o700), os.Mkdir(group, 0o700), run("ip link add planted0 type veth peer name planted1"), run("nft add table inet planted"))
	if err != nil {
		return err
	}
	after, err := n.look()
	if err != nil {
		return err
	}
	seen := fmt.Sprint(before.same(after))
	for _, want := range []string{
		fmt.Sprintf("in processes: %d sleep", process.Process.Pid), "in mounts: planted " + mount, "in settings: " + setting + " = 63",
		"in entries of /var/lib: planted", "in control groups: " + group, "in interfaces: planted0", "in firewall rules: table inet planted",
	} {
		if !strings.Contains(seen, "left on the host, "+want) {
			err = errors.Join(err, fmt.Errorf("not seen: %s", want))
		}
	}
	return err
}
