package main

import (
	"math"
	"os"
	"runtime/debug"
	"testing"
	"testing/fstest"
)

func TestTheContainersMemoryIsReadWhereItIsLimited(t *testing.T) {
	group := func(files ...string) fstest.MapFS {
		found := fstest.MapFS{}
		for i := 0; i < len(files); i += 2 {
			found[files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
		}
		return found
	}
	for name, test := range map[string]struct {
		files fstest.MapFS
		want  int64
	}{
		"version 2":            {group("memory.max", "1073741824\n"), 1 << 30},
		"version 2, no limit":  {group("memory.max", "max\n"), 0},
		"version 1":            {group("memory/memory.limit_in_bytes", "268435456\n"), 256 << 20},
		"version 1, no limit":  {group("memory/memory.limit_in_bytes", "9223372036854771712\n"), 0},
		"both, the first says": {group("memory.max", "max", "memory/memory.limit_in_bytes", "1048576"), 1 << 20},
		"none":                 {group(), 0},
		"none that is read":    {group("memory.max", "1 GiB"), 0},
	} {
		if got := containerMemory(test.files); got != test.want {
			t.Errorf("%s: %d bytes, want %d", name, got, test.want)
		}
	}
}

func TestTheMemoryLimitIsNineTenthsOfTheContainersUnlessItIsGiven(t *testing.T) {
	was := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(was) })
	groups := fstest.MapFS{"memory.max": &fstest.MapFile{Data: []byte("10000000000\n")}}
	for given, want := range map[string]int64{"": 9_000_000_000, "off": math.MaxInt64} {
		debug.SetMemoryLimit(math.MaxInt64)
		t.Setenv("GOMEMLIMIT", given)
		if given == "" {
			if err := os.Unsetenv("GOMEMLIMIT"); err != nil { // Setenv above puts back what was there
				t.Fatal(err)
			}
		}
		if limitMemory(groups); debug.SetMemoryLimit(-1) != want {
			t.Errorf("GOMEMLIMIT=%q: the limit is %d, want %d", given, debug.SetMemoryLimit(-1), want)
		}
	}
	debug.SetMemoryLimit(1 << 30)
	if limitMemory(groups); debug.SetMemoryLimit(-1) != 1<<30 {
		t.Errorf("a limit that was set is now %d", debug.SetMemoryLimit(-1))
	}
}
