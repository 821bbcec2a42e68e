package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Cgroups is where the control groups are mounted.
const Cgroups = "/sys/fs/cgroup"

// Container is a control group whose processes may take so much memory, as a container's.
type Container struct {
	folder string
	peaks  []string // files: what they hold adds up
	let    string   // where the memory's controller was let reach the folder, "" if it did
}

// NewContainer makes the control group in a hierarchy of version 1 or 2. It takes root, as a rule.
func NewContainer(root, name string, limit int64) (*Container, error) {
	c := &Container{folder: filepath.Join(root, "memory", name), peaks: []string{"memory.max_usage_in_bytes", "memory.kmem.tcp.max_usage_in_bytes"}}
	// Version 1 counts the buffers of connections apart, and only where they have a limit.
	limits := []string{"memory.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes"}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		c.folder, c.peaks, limits = filepath.Join(root, name), []string{"memory.peak"}, []string{"memory.max"}
		if err := c.reach(root); err != nil {
			return nil, err
		}
	}
	err := os.Mkdir(c.folder, 0o755)
	if errors.Is(err, fs.ErrExist) { // of a run that was killed
		err = errors.Join(os.Remove(c.folder), os.Mkdir(c.folder, 0o755))
	}
	for _, file := range limits {
		if err == nil {
			err = os.WriteFile(filepath.Join(c.folder, file), strconv.AppendInt(nil, limit, 10), 0o644)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("control group: %w", err), c.Remove())
	}
	return c, nil
}

// reach lets the memory's controller of version 2 reach the folder.
func (c *Container) reach(root string) error {
	file := filepath.Join(root, "cgroup.subtree_control")
	reach, err := os.ReadFile(file)
	if err != nil || strings.Contains(" "+string(reach)+" ", "memory") {
		return err
	}
	c.let = file
	return os.WriteFile(file, []byte("+memory"), 0o644)
}

// Command is one that runs another in the container.
func (c *Container) Command(command ...string) []string {
	return append([]string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, c.folder}, command...)
}

// Peak is the most memory that the container's processes took together: their own, the kernel's for
// them, and pages of files that they were the first to read.
func (c *Container) Peak() (bytes int64, err error) {
	for _, file := range c.peaks {
		text, err := os.ReadFile(filepath.Join(c.folder, file))
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		bytes += n
	}
	return bytes, nil
}

// Remove removes the control group, whose processes have ended: the kernel may take a moment to see
// that.
func (c *Container) Remove() error {
	var err error
	for range 100 {
		if err = os.Remove(c.folder); err == nil || errors.Is(err, fs.ErrNotExist) {
			err = nil
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if c.let != "" {
		err = errors.Join(err, os.WriteFile(c.let, []byte("-memory"), 0o644))
	}
	return err
}
