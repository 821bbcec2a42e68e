package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// nodeName is the node's name in the cluster and its host name.
const nodeName = "node1"

// namespaces are those that the first process gets. With it end every process, mount, address and
// firewall rule in them.
const namespaces = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

// inNamespaces runs this program again as the first process of new namespaces and returns when it
// has ended.
func (l *lab) inNamespaces(ctx context.Context) error {
	for _, dir := range []string{l.state, l.logs} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"init", "--root", l.root, self, "inside", "--root", l.root, "--cgroup", l.cgroup}
	if l.istio {
		args = append(args, "--istio")
	}
	if l.only != "" {
		args = append(args, "--only", l.only)
	}
	if l.keep {
		args = append(args, "--keep")
	}
	cmd := exec.CommandContext(ctx, self, args...) // which kills it when ctx ends
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = l.environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("the kernel gives no new net, mount, pid, uts and ipc namespaces here (a container without CAP_SYS_ADMIN?): %w", err)
		}
		return err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return fmt.Errorf("a step has failed, see above; logs are in %s", l.logs)
	}
	return err
}

// environment is what programs of the node find: get-tools' before the host's, and no folder of the
// host's for what they leave.
func (l *lab) environment() []string {
	root := filepath.Join(l.tools, "root")
	var libraries []string
	for _, pattern := range []string{"usr/lib/*-linux-gnu", "lib/*-linux-gnu"} {
		found, _ := filepath.Glob(filepath.Join(root, pattern)) // the pattern is right
		libraries = append(libraries, found...)
	}
	env := []string{
		"PATH=" + strings.Join([]string{
			filepath.Join(l.state, "bin"), filepath.Join(l.tools, "bin"),
			filepath.Join(root, "usr/sbin"), filepath.Join(root, "usr/bin"), filepath.Join(root, "sbin"),
			os.Getenv("PATH"), "/usr/local/sbin", "/usr/sbin", "/sbin",
		}, ":"),
		"HOME=" + l.state, "TMPDIR=" + filepath.Join(l.state, "tmp"), "KUBECONFIG=" + l.kubeconfig(), "LANG=C.UTF-8",
	}
	if len(libraries) > 0 {
		env = append(env, "LD_LIBRARY_PATH="+strings.Join(libraries, ":"), "XTABLES_LIBDIR="+filepath.Join(libraries[0], "xtables"))
	}
	return env
}

// kubeconfig is the administrator's.
func (l *lab) kubeconfig() string { return filepath.Join(l.state, "admin.kubeconfig") }

// runInit is the first process: it runs the command, reaps what the node's processes leave to it,
// and ends with the command.
func runInit(command []string) error {
	child, err := os.StartProcess(command[0], command, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
	if err != nil {
		return err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if pid != child.Pid {
			continue
		}
		if status.ExitStatus() != 0 {
			os.Exit(1)
		}
		return nil
	}
}

// settle turns new namespaces into a node: folders of its own where programs would write into the
// host's, a network with an address that pods can reach, and the machine's settings out of reach.
func (l *lab) settle() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts from the host: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for name, target := range map[string]string{"run": "/run", "lib": "/var/lib", "log": "/var/log"} {
		if below(l.root, target) {
			return fmt.Errorf("the project lies below %s, which the node has to itself: move it elsewhere", target)
		}
		if err := bind(filepath.Join(l.state, name), target, true); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/run/netns", "/run/lock", filepath.Join(l.state, "tmp"), filepath.Join(l.state, "bin"), filepath.Join(l.state, "cni")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := l.hideSettings(); err != nil {
		return err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil { // as containers expect
		return err
	}
	if err := syscall.Sethostname([]byte(nodeName)); err != nil {
		return err
	}
	return network()
}

// hideSettings lets the kubelet find the kernel settings that it wants, so that it writes none:
// they are the whole machine's, and a kubelet that may not write them does not start.
func (l *lab) hideSettings() error {
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		file := filepath.Join(l.state, strings.ReplaceAll(name, "/", "-"))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := bind(file, "/proc/sys/"+name, false); err != nil {
			return err
		}
	}
	return nil
}

func bind(source, target string, folder bool) error {
	if folder {
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
	}
	if err := syscall.Mount(source, target, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount over %s: %w", target, err)
	}
	return nil
}

func below(path, folder string) bool {
	rel, err := filepath.Rel(folder, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// network gives the node an address, on one end of a pair that leads nowhere, and a default route,
// without which nothing is routed.
func network() error {
	for _, command := range []string{
		"ip link set lo up",
		"ip link add node0 type veth peer name node0p",
		"ip link set node0 up", "ip link set node0p up",
		"ip addr add " + nodeIP + "/24 dev node0",
		"ip route add default via " + gatewayIP + " dev node0",
	} {
		if _, err := output(context.Background(), time.Minute, strings.Fields(command)...); err != nil {
			return fmt.Errorf("the node's network (does the kernel have veth?): %w", err)
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) // of this network namespace
}

// output runs a command to its end and returns what it wrote; an error carries what it said.
func output(ctx context.Context, timeout time.Duration, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("not done within %s", timeout)
		}
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// processes calls visit for each process that is seen here, with its command line, until it returns
// false.
func processes(visit func(pid int, command []string) bool) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil || len(line) == 0 { // has ended, or is the kernel's
			continue
		}
		if !visit(pid, strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")) {
			return nil
		}
	}
	return nil
}
