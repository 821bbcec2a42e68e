package proc

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestLockKeepsASecondLabOutUntilTheFirstHasEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(path); err == nil || !strings.Contains(err.Error(), "another lab") {
		t.Errorf("got %v, want it to name the other lab", err)
	}
	release()
	again, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
