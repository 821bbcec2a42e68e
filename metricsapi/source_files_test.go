package metricsapi

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// logBuffer is a log to look into.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) count(part string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), part)
}

// hpaDir is a folder of HPA files under a running source.
type hpaDir struct {
	*testing.T
	path    string
	catalog *catalog
	source  *fileSource
	log     *logBuffer
}

func newHPADir(t *testing.T) *hpaDir {
	c, _ := newTestCatalog(t)
	d := &hpaDir{T: t, path: t.TempDir(), catalog: c, log: &logBuffer{}}
	source, err := newFileSource(d.path, c, newMetrics(nil), slog.New(slog.NewTextHandler(d.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	d.source = source
	return d
}

func (d *hpaDir) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.source.Run(ctx) }()
	d.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			d.Error(err)
		}
	})
}

func (d *hpaDir) write(name, text string) {
	d.Helper()
	if err := os.WriteFile(filepath.Join(d.path, name), []byte(text), 0o600); err != nil {
		d.Fatal(err)
	}
}

func (d *hpaDir) do(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *hpaDir) names() string {
	var names []string
	for _, h := range d.catalog.current.Load().hpas {
		names = append(names, h.Name)
	}
	return strings.Join(names, " ")
}

// wait waits for the HPAs, in order.
func (d *hpaDir) wait(want string) {
	d.Helper()
	eventually(d.T, func() bool { return d.names() == want }, func() string { return "HPAs are " + d.names() + ", want " + want })
}

// eventually waits for as long as a loaded machine may take.
func eventually(t *testing.T, ok func() bool, state func() string) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(state())
		}
	}
}

func TestFileSourceFollowsTheFolder(t *testing.T) {
	d := newHPADir(t)
	d.write("a.yaml", minimalHPA("a"))
	if d.source.Synced() == nil {
		t.Error("synced before any file was read")
	}
	d.start()
	d.wait("a")
	if err := d.source.Synced(); err != nil {
		t.Error(err)
	}

	d.write("b.yml", minimalHPA("b")+"---\n"+minimalHPA("c"))
	d.write("d.json", `{"apiVersion":"autoscaling/v2","kind":"HorizontalPodAutoscaler","metadata":{"name":"d"},"spec":{"maxReplicas":1,"scaleTargetRef":{"kind":"Deployment","name":"d"}}}`)
	d.write("notes.txt", "hello")
	d.write(".hidden.yaml", minimalHPA("hidden"))
	d.do(os.Mkdir(filepath.Join(d.path, "folder.yaml"), 0o700))
	d.wait("a b c d")

	// An editor writes beside and renames over.
	d.write("b.yml~", minimalHPA("e"))
	d.do(os.Rename(filepath.Join(d.path, "b.yml~"), filepath.Join(d.path, "b.yml")))
	d.wait("a d e")

	d.do(os.Remove(filepath.Join(d.path, "a.yaml")))
	d.wait("d e")
	d.do(os.Rename(filepath.Join(d.path, "d.json"), filepath.Join(d.path, "d.json.off")))
	d.wait("e")
}

func TestFileSourceKeepsTheLastGoodVersion(t *testing.T) {
	d := newHPADir(t)
	d.write("a.yaml", minimalHPA("a"))
	d.write("bad.yaml", "kind: [\n")
	d.start()
	d.wait("a")
	d.write("b.yaml", minimalHPA("b"))
	d.wait("a b")

	d.write("b.yaml", minimalHPA("b")+"---\n}\n")
	eventually(t, func() bool { return d.log.count("b.yaml") > 0 }, func() string { return "no error about b.yaml" })
	d.write("c.yaml", minimalHPA("c"))
	d.wait("a b c")
	d.write("b.yaml", minimalHPA("b2"))
	d.wait("a b2 c")

	if got := d.log.count("level=ERROR"); got != 2 {
		t.Errorf("%d errors for two bad files:\n%s", got, d.log.text.String())
	}
	for _, parts := range [][]string{{"bad.yaml err=\"line ", "nothing of it is served"}, {"b.yaml err=\"line 5", "its last good version of the rest stays"}} {
		if part := parts[0]; d.log.count(part) != 1 || d.log.count(parts[1]) != 1 {
			t.Errorf("no error with %q:\n%s", part, d.log.text.String())
		}
	}
}

// A document that cannot be served takes no other of its file with it, and what was served of it
// stays.
func TestFileSourceServesTheOtherDocuments(t *testing.T) {
	d := newHPADir(t)
	broken := func(name string) string {
		return strings.Replace(minimalHPA(name), "maxReplicas: 3", "maxReplicas: many", 1)
	}
	d.write("a.yaml", strings.Join([]string{minimalHPA("a"), broken("b"), minimalHPA("c")}, "---\n"))
	d.start()
	d.wait("a c")
	d.write("a.yaml", strings.Join([]string{minimalHPA("a"), minimalHPA("b"), minimalHPA("c")}, "---\n"))
	d.wait("a b c")
	d.write("a.yaml", strings.Join([]string{minimalHPA("a"), broken("b"), minimalHPA("d")}, "---\n"))
	d.wait("a b c d")
	d.write("a.yaml", strings.Join([]string{minimalHPA("a"), minimalHPA("d")}, "---\n"))
	d.wait("a d")
	if got := d.log.count("level=ERROR"); got != 2 {
		t.Errorf("%d errors for two bad versions:\n%s", got, d.log.text.String())
	}
}

// A file without end, such as /proc has them with a size of 0, is read as far as a file of HPAs may
// be long.
func TestFileSourceReadsNoFileWithoutEnd(t *testing.T) {
	d := newHPADir(t)
	if info, err := os.Stat("/proc/self/pagemap"); err != nil || !info.Mode().IsRegular() || info.Size() != 0 {
		t.Fatalf("/proc/self/pagemap is %v, error %v", info, err)
	}
	d.do(os.Symlink("/proc/self/pagemap", filepath.Join(d.path, "b.yaml")))
	d.write("a.yaml", minimalHPA("a"))
	large, err := os.Create(filepath.Join(d.path, "c.yaml"))
	d.do(err)
	d.do(large.Truncate(maxFileSize + 1))
	d.do(large.Close())
	d.write("d.yaml", minimalHPA("d")+"#"+strings.Repeat("x", maxFileSize-len(minimalHPA("d"))-1)) // as long as one may be
	d.start()
	d.wait("a d")
	if d.log.count("b.yaml err=") != 1 || d.log.count("c.yaml err=\"more than 16777216 bytes") != 1 {
		t.Errorf("no error about b.yaml or c.yaml:\n%s", d.log.text.String())
	}
}

// endless is a file without end that counts what is read of it.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	if e.read += len(p); e.read > 2*maxFileSize {
		return 0, errors.New("read on and on")
	}
	return len(p), nil
}

func TestAFileWithoutEndIsReadAsFarAsOneMayBe(t *testing.T) {
	var e endless
	if _, err := readAtMost(&e); !errors.Is(err, errTooLarge) || e.read > maxFileSize+1 {
		t.Errorf("%d bytes are read, error %v", e.read, err)
	}
}

// A mounted ConfigMap: files are symlinks through ..data, which is swapped as a whole.
func TestFileSourceFollowsAConfigMap(t *testing.T) {
	d := newHPADir(t)
	version := func(name, hpa string) {
		d.do(os.Mkdir(filepath.Join(d.path, name), 0o700))
		d.write(filepath.Join(name, "hpa.yaml"), minimalHPA(hpa))
	}
	version("..1", "one")
	d.do(os.Symlink("..1", filepath.Join(d.path, "..data")))
	d.do(os.Symlink(filepath.Join("..data", "hpa.yaml"), filepath.Join(d.path, "hpa.yaml")))
	d.start()
	d.wait("one")

	version("..2", "two")
	d.do(os.Symlink("..2", filepath.Join(d.path, "..data_tmp")))
	d.do(os.Rename(filepath.Join(d.path, "..data_tmp"), filepath.Join(d.path, "..data")))
	d.do(os.RemoveAll(filepath.Join(d.path, "..1")))
	d.wait("two")

	d.do(os.Remove(filepath.Join(d.path, "hpa.yaml")))
	d.wait("")
}

// Symlinks to files elsewhere, and the folder itself replaced: no notification comes for the
// content.
func TestFileSourceSeesWhatIsNotNotified(t *testing.T) {
	d := newHPADir(t)
	elsewhere := filepath.Join(t.TempDir(), "a.yaml")
	d.do(os.WriteFile(elsewhere, []byte(minimalHPA("a")), 0o600))
	d.do(os.Symlink(elsewhere, filepath.Join(d.path, "a.yaml")))
	d.start()
	d.wait("a")
	d.do(os.WriteFile(elsewhere, []byte(minimalHPA("longer")), 0o600))
	d.wait("longer")

	away := d.path + ".old"
	d.do(os.Rename(d.path, away))
	eventually(t, func() bool { return d.log.count("hpa folder cannot be read") > 0 }, func() string { return "no error about the folder" })
	if got := d.names(); got != "longer" {
		t.Errorf("without its folder the HPAs are %q", got)
	}
	d.do(os.Mkdir(d.path, 0o700))
	d.write("b.yaml", minimalHPA("b"))
	d.wait("b")
	if got := d.log.count("hpa folder cannot be read"); got != 1 {
		t.Errorf("%d errors about one folder", got)
	}
}

func TestFileSourceTwoOfOneName(t *testing.T) {
	d := newHPADir(t)
	d.write("1.yaml", strings.Replace(minimalHPA("a"), "maxReplicas: 3", "maxReplicas: 1", 1))
	d.write("2.yaml", minimalHPA("a"))
	d.start()
	d.wait("a")
	if got := d.catalog.current.Load().hpas[0].Spec.MaxReplicas; got != 1 {
		t.Errorf("the second file's HPA counts (maxReplicas %d)", got)
	}
	if d.log.count("two HPAs of one name") == 0 {
		t.Error("no error about it")
	}
}

func TestFileSourceWithoutAFolder(t *testing.T) {
	c, _ := newTestCatalog(t)
	missing := filepath.Join(t.TempDir(), "missing")
	_, err := newFileSource(missing, c, newMetrics(nil), discardLog())
	if err == nil || !strings.Contains(err.Error(), "--hpa-dir") || !strings.Contains(err.Error(), missing) {
		t.Errorf("error is %v", err)
	}
}

func TestLogEvents(t *testing.T) {
	log := &logBuffer{}
	w := newWarner(logEvents(slog.New(slog.NewTextHandler(log, nil))), newMetrics(nil))
	h := asks(t, "podinfo", "rps", "vector(1)")
	p := hpas.Problem{Reason: hpas.ReasonBadQuery, Message: "it does not parse"}
	w.tell(h, p)
	w.tell(h, p)
	w.tell(h, hpas.Problem{Reason: hpas.ReasonNoQuery, Message: "other"})
	if d := cmp.Diff([]int{2, 1, 1}, []int{log.count("hpa=podinfo"), log.count("it does not parse"), log.count("file=test.yaml reason") + log.count("reason=NoQuery")}); d != "" {
		t.Errorf("(-want +got):\n%s\n%s", d, log.text.String())
	}
}
