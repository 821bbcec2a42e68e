package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestClientConfig(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte("\x00\x01"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for path, part := range map[string]string{
		filepath.Join(dir, "missing"): "no such file",
		dir:                           dir,
		garbage:                       "not a kubeconfig",
		empty:                         "not a kubeconfig",
		"":                            "--standalone --hpa-dir",
	} {
		_, err := clientConfig(path)
		if err == nil || !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "--kubeconfig") {
			t.Errorf("%q: %v, want an error with %q", path, err, part)
		}
	}
}
