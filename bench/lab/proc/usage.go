package proc

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Usage is what a process has used so far.
type Usage struct {
	// CPU is user and system time in seconds.
	CPU float64
	// PeakRSS is the largest resident set in bytes.
	PeakRSS float64
}

// clockTicks is USER_HZ, 100 on every Linux that Go runs on.
const clockTicks = 100

// UsageOf reads a process's CPU time and peak memory from /proc (proc(5): stat fields 14 and 15, status VmHWM).
func UsageOf(pid int) (Usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Usage{}, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Usage{}, err
	}
	return parseUsage(string(stat), string(status))
}

func parseUsage(stat, status string) (Usage, error) {
	// The command's name is in parentheses and may hold spaces: fields are counted behind the last one.
	_, rest, ok := strings.Cut(stat[strings.LastIndexByte(stat, ')')+1:], " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return Usage{}, fmt.Errorf("stat of a process cannot be read: %q", stat)
	}
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	if err1 != nil || err2 != nil {
		return Usage{}, fmt.Errorf("stat of a process cannot be read: %q", stat)
	}
	usage := Usage{CPU: (user + system) / clockTicks}
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			if err != nil {
				return Usage{}, fmt.Errorf("status of a process cannot be read: %q", line)
			}
			usage.PeakRSS = kb * 1024
		}
	}
	return usage, nil
}
