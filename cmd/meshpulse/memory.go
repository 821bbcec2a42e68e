package main

import (
	"io/fs"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// controlGroups is where a container sees its own control group: as the root, whatever it is called
// outside.
const controlGroups = "/sys/fs/cgroup"

// limitMemory sets Go's memory limit to nine tenths of what the container may take, so that the
// collector works harder before the kernel kills. What GOMEMLIMIT says stays.
func limitMemory(groups fs.FS) {
	if _, given := os.LookupEnv("GOMEMLIMIT"); given || debug.SetMemoryLimit(-1) != math.MaxInt64 {
		return
	}
	if limit := containerMemory(groups); limit > 0 {
		debug.SetMemoryLimit(limit / 10 * 9)
	}
}

// containerMemory is what the container may take, in bytes, 0 where nothing limits it. A group
// without a limit says "max", or with version 1 a number that no machine has.
func containerMemory(groups fs.FS) int64 {
	const noMachine = 1 << 60
	for _, file := range []string{"memory.max", "memory/memory.limit_in_bytes"} { // versions 2 and 1
		content, err := fs.ReadFile(groups, file)
		if err != nil {
			continue
		}
		limit, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64)
		if err == nil && limit > 0 && limit < noMachine {
			return limit
		}
	}
	return 0
}
