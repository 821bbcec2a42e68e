package aggregator

import (
	"os"
	"os/exec"
	"regexp"
	"testing"
)

// inAProcessOfItsOwn runs the calling test again in a process that runs nothing else, and says
// whether this is that process. A heap that is measured beside what other tests leave behind, and
// the collector frees at a time of its own, shows theirs, too.
func inAProcessOfItsOwn(t *testing.T) bool {
	t.Helper()
	const mark = "MESHPULSE_TEST_ALONE"
	if os.Getenv(mark) == t.Name() {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+regexp.QuoteMeta(t.Name())+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), mark+"="+t.Name())
	out, err := cmd.CombinedOutput()
	t.Logf("alone: %s", out)
	if err != nil {
		t.Errorf("alone: %v", err)
	}
	return false
}
