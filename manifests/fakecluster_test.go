package manifests

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// fakeCluster is the folder that testdata/kubectl works on: the scripts run as they are, with the
// real openssl. What it cannot show, that an API server takes what they send, is for the lab to
// show.
type fakeCluster struct {
	t      *testing.T
	folder string
}

const ours = "meshpulse-system/meshpulse"

func newFakeCluster(t *testing.T, owner string) fakeCluster {
	t.Helper()
	c := fakeCluster{t, t.TempDir()}
	c.write("base.yaml", bytes.Join(render(t, "base"), []byte("---\n")))
	if owner != "" {
		c.write("owner", []byte(owner))
	}
	return c
}

func (c fakeCluster) write(name string, content []byte) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.folder, name), content, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// read returns a file of the folder, "" if it is not there.
func (c fakeCluster) read(name string) string {
	c.t.Helper()
	content, err := os.ReadFile(filepath.Join(c.folder, name))
	if err != nil && !os.IsNotExist(err) {
		c.t.Fatal(err)
	}
	return string(content)
}

// run executes a script against the cluster; its output is what an operator sees.
func (c fakeCluster) run(script string, args ...string) (output string, err error) {
	c.t.Helper()
	fake, err := filepath.Abs("testdata")
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", append([]string{script}, args...)...)
	cmd.Env = append(os.Environ(), "FAKE="+c.folder, "PATH="+fake+":"+os.Getenv("PATH"), "TMPDIR="+c.t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c fakeCluster) mustRun(script string, args ...string) string {
	c.t.Helper()
	out, err := c.run(script, args...)
	if err != nil {
		c.t.Fatalf("%s %v: %v\n%s", script, args, err, out)
	}
	return out
}

var readsOnly = regexp.MustCompile(`^(kustomize |(-n \S+ )?get |.*--dry-run=client)`)

// changes are the calls that change the cluster, in order.
func (c fakeCluster) changes() []string {
	c.t.Helper()
	var found []string
	for line := range strings.Lines(c.read("log")) {
		if !readsOnly.MatchString(line) && !strings.Contains(line, "rollout status") && !strings.HasPrefix(line, "wait ") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// apiService is the APIService that was created.
func (c fakeCluster) apiService() *apiregistration.APIService {
	c.t.Helper()
	a, ok := decode(c.t, "created APIService", []byte(c.read("apiservice.yaml"))).(*apiregistration.APIService)
	if !ok {
		c.t.Fatal("not an APIService")
	}
	return a
}
