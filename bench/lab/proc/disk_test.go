package proc

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/bench/process"
)

func TestADiskThatIsTooSmallIsNamedWithWhatIsNeeded(t *testing.T) {
	dir := t.TempDir()
	if err := CheckDisk(dir, 1); err != nil {
		t.Errorf("a byte: %v", err)
	}
	err := CheckDisk(dir, math.MaxInt64)
	for _, want := range []string{dir, "MiB free", "needs 8796093022207 MiB", "make room"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if err := CheckDisk(filepath.Join(dir, "missing"), 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func TestAFullDiskIsNamed(t *testing.T) {
	dir := t.TempDir()
	ours := os.WriteFile("/dev/full", []byte("x"), 0)
	if !errors.Is(ours, syscall.ENOSPC) {
		t.Fatalf("/dev/full takes what it is given: %v", ours)
	}
	p, err := process.Start(filepath.Join(dir, "log"), "sh", "-c", "dd if=/dev/zero of=/dev/full count=1")
	if err != nil {
		t.Fatal(err)
	}
	theirs := p.Await(t.Context(), time.Minute, func(context.Context) error { return errors.New("not yet") })
	for name, err := range map[string]error{"what we write": ours, "what a process writes": theirs} {
		named := NameFullDisk(err, dir, 1<<30)
		if !errors.Is(named, err) || !strings.Contains(named.Error(), "a disk is full") || !strings.Contains(named.Error(), "1024 MiB") {
			t.Errorf("%s: %v", name, named)
		}
	}
	other := errors.New("a port is in use")
	if err := NameFullDisk(other, dir, 1<<30); err != other {
		t.Errorf("another error has become %v", err)
	}
	if err := NameFullDisk(nil, dir, 1<<30); err != nil {
		t.Errorf("no error has become %v", err)
	}
}
