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
	// Received is the bytes that its read calls returned: of sockets above all, and of the few files it reads.
	Received float64
	// Written is the bytes that its write calls took.
	Written float64
}

// clockTicks is USER_HZ, 100 on every Linux that Go runs on.
const clockTicks = 100

// UsageOf reads what a process has used from /proc (proc(5): stat fields 14 and 15, status VmHWM, io rchar).
func UsageOf(pid int) (Usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Usage{}, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Usage{}, err
	}
	io, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return Usage{}, err
	}
	return parseUsage(string(stat), string(status), string(io))
}

func parseUsage(stat, status, io string) (Usage, error) {
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
	var err error
	if usage.PeakRSS, err = numberAfter(status, "VmHWM:", " kB"); err != nil {
		return Usage{}, err
	}
	usage.PeakRSS *= 1024
	if usage.Received, err = numberAfter(io, "rchar:", ""); err != nil {
		return Usage{}, err
	}
	usage.Written, err = numberAfter(io, "wchar:", "")
	return usage, err
}

// numberAfter is the number of the line that begins with the key, 0 if no line does.
func numberAfter(text, key, unit string) (float64, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key); ok {
			n, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), unit), 64)
			if err != nil {
				return 0, fmt.Errorf("status of a process cannot be read: %q", line)
			}
			return n, nil
		}
	}
	return 0, nil
}
