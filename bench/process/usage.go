package process

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process has used so far.
type Usage struct {
	// CPU is user and system time.
	CPU time.Duration
	// Resident is the resident set in bytes, Peak the largest that it was, Anonymous what of it is
	// not pages of files.
	Resident, Peak, Anonymous int64
	// Received is the bytes that its read calls returned: of sockets above all, and of the few
	// files it reads. Written is the bytes that its write calls took.
	Received, Written int64
}

// clockTick is what /proc counts CPU time in: USER_HZ, 100 a second on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// UsageOf reads what a process has used from /proc (proc(5): stat fields 14 and 15, status VmRSS,
// VmHWM and RssAnon, io rchar and wchar).
func UsageOf(pid int) (Usage, error) {
	var texts [3]string
	for i, name := range []string{"stat", "status", "io"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			return Usage{}, err
		}
		texts[i] = string(b)
	}
	u, err := parseUsage(texts[0], texts[1], texts[2])
	if err != nil {
		return Usage{}, fmt.Errorf("what process %d has used: %w", pid, err)
	}
	return u, nil
}

func parseUsage(stat, status, io string) (u Usage, err error) {
	// The command's name is in parentheses and may hold spaces: fields are counted behind the last
	// one.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return u, fmt.Errorf("stat has %d fields: %q", len(fields), stat)
	}
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return u, fmt.Errorf("stat: %w", err)
		}
		u.CPU += time.Duration(ticks) * clockTick
	}
	for _, n := range []struct {
		text, key string
		unit      int64
		into      *int64
	}{
		{status, "VmRSS:", 1 << 10, &u.Resident},
		{status, "VmHWM:", 1 << 10, &u.Peak},
		{status, "RssAnon:", 1 << 10, &u.Anonymous},
		{io, "rchar:", 1, &u.Received},
		{io, "wchar:", 1, &u.Written},
	} {
		if *n.into, err = numberAfter(n.text, n.key); err != nil {
			return u, err
		}
		*n.into *= n.unit
	}
	return u, nil
}

// numberAfter is the number of the line that begins with the key. There is none of a process that
// has ended and not been waited for: 0.
func numberAfter(text, key string) (int64, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key); ok {
			return strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		}
	}
	return 0, nil
}
