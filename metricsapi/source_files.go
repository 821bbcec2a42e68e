package metricsapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

const (
	// relistInterval is how often files are looked at even without a notification, which misses
	// what a symlink points to.
	relistInterval = time.Second
	// settle is how long a burst of notifications may last before files are read: an editor writes
	// in several steps.
	settle = 50 * time.Millisecond
	// maxFileSize bounds an HPA file; one HPA is a few KB.
	maxFileSize = 16 << 20
)

// source keeps the catalog in step with where HPAs come from.
type source interface {
	// Run feeds the catalog until the context ends.
	Run(ctx context.Context) error
	// Synced says why the HPAs are not known yet, nil once they are.
	Synced() error
	// Known is an HPA with the status that its controller writes, false where nobody does.
	Known(namespace, name string) (now *autoscalingv2.HorizontalPodAutoscaler, ok bool)
}

// fileSource keeps the HPAs of the *.yaml, *.yml and *.json files of one folder. Symlinks are
// followed, so a mounted ConfigMap works; names that start with a dot are left out.
type fileSource struct {
	dir     string
	catalog *catalog
	metrics *metrics
	log     *slog.Logger

	// Owned by run.
	files  map[string]*hpaFile // by path
	dirErr string              // the last error of the folder that was logged
	untold bool                // a fault has kept what was read from the catalog
	ready  atomic.Bool
}

// hpaFile is a file as it was last looked at.
type hpaFile struct {
	stamp stamp
	// err is what was logged of the current content; hpas are those that are served.
	err  string
	hpas []hpas.HPA
}

// stamp changes when a file's content does.
type stamp struct {
	modified time.Time
	size     int64
	inode    fs.FileInfo // compared with os.SameFile
}

func (s stamp) equal(o stamp) bool {
	return s.modified.Equal(o.modified) && s.size == o.size && os.SameFile(s.inode, o.inode)
}

// newFileSource fails on a folder that cannot be read; one that goes away later is an error in the
// log.
func newFileSource(dir string, c *catalog, m *metrics, log *slog.Logger) (*fileSource, error) {
	if _, err := os.ReadDir(dir); err != nil {
		return nil, fmt.Errorf("--hpa-dir: %w: give a folder that can be read", err)
	}
	return &fileSource{dir: dir, catalog: c, metrics: m, log: log, files: map[string]*hpaFile{}}, nil
}

func (s *fileSource) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	var notified chan fsnotify.Event // nil without a watcher: never
	var lost chan error              // its queue overflowed
	if err != nil {
		s.log.Warn("files are not watched, only looked at every second", "dir", s.dir, "err", err)
	} else {
		notified, lost = watcher.Events, watcher.Errors
		defer func() { _ = watcher.Close() }()
	}
	tick := time.NewTicker(relistInterval)
	defer tick.Stop()
	var settled <-chan time.Time
	for {
		if watcher != nil {
			_ = watcher.Add(s.dir) // again each time: the folder may have been replaced; its errors show in list
		}
		s.catalog.store.Contain("hpas", s.dir, s.relist) // after a fault the HPAs of before stay
		for wait := true; wait; {
			select {
			case <-ctx.Done():
				return nil
			case <-notified:
				if settled == nil {
					settled = time.After(settle)
				}
			case <-settled:
				settled, wait = nil, false
			case err := <-lost:
				s.log.Debug("notifications were lost, looking by ourselves", "dir", s.dir, "err", err)
				wait = false
			case <-tick.C:
				wait = false
			}
		}
	}
}

// relist reads the files that have changed and replaces the catalog's HPAs if any has.
func (s *fileSource) relist() {
	paths, err := s.list()
	if err != nil {
		if s.dirErr != err.Error() {
			s.dirErr = err.Error()
			s.log.Error("hpa folder cannot be read, its last HPAs stay", "dir", s.dir, "err", err)
		}
		return
	}
	s.dirErr = ""
	changed := s.untold || !s.ready.Load()
	before := len(s.files)
	maps.DeleteFunc(s.files, func(path string, _ *hpaFile) bool { return !slices.Contains(paths, path) })
	changed = changed || len(s.files) < before
	for _, path := range paths {
		changed = s.look(path) || changed
	}
	if !changed {
		return
	}
	list := s.all()
	s.untold = true
	s.catalog.Replace(list)
	s.untold = false
	s.ready.Store(true)
	s.log.Info("hpa files read", "dir", s.dir, "files", len(s.files), "hpas", len(list))
}

func (s *fileSource) list() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		switch strings.ToLower(filepath.Ext(e.Name())) {
		case ".yaml", ".yml", ".json":
			path := filepath.Join(s.dir, e.Name())
			info, err := os.Stat(path)
			regular := err == nil && info.Mode().IsRegular()
			unknown := err != nil && !errors.Is(err, fs.ErrNotExist) // a dangling symlink is no file
			if !strings.HasPrefix(e.Name(), ".") && (regular || unknown) {
				paths = append(paths, path)
			}
		}
	}
	return paths, nil
}

// look reads a file if it has changed and says whether it has. What cannot be read keeps the HPAs
// that the file had last; of one that can be read in part, what can, and those of before that it
// lacks, since what cannot be read may be theirs.
func (s *fileSource) look(path string) (changed bool) {
	f, known := s.files[path]
	if !known {
		f = &hpaFile{}
		s.files[path] = f
	}
	info, err := os.Stat(path)
	if err == nil {
		now := stamp{info.ModTime(), info.Size(), info}
		if now.equal(f.stamp) {
			return false
		}
		f.stamp = now
	}
	var data []byte
	if err == nil {
		data, err = readFile(path)
	}
	if err != nil {
		if !errors.Is(err, errTooLarge) {
			f.stamp = stamp{} // not the content's fault: try again at the next look
		}
		s.tell(path, f, err)
		return !known
	}
	c := hpas.Decode(path, data)
	if len(c.Ignored) > 0 {
		s.log.Info("objects of other kinds are ignored", "file", path, "kinds", strings.Join(c.Ignored, ", "))
	}
	if len(c.Refused) == 0 {
		f.err, f.hpas = "", c.HPAs
		return true
	}
	for _, old := range f.hpas {
		if !slices.ContainsFunc(c.HPAs, func(h hpas.HPA) bool { return h.Key() == old.Key() }) {
			c.HPAs = append(c.HPAs, old)
		}
	}
	f.hpas = c.HPAs
	errs := make([]error, len(c.Refused))
	for i, refused := range c.Refused {
		errs[i] = refused
	}
	s.tell(path, f, errors.Join(errs...))
	return true
}

// tell logs and counts what is wrong with a file, once.
func (s *fileSource) tell(path string, f *hpaFile, err error) {
	if f.err == err.Error() {
		return
	}
	f.err = err.Error()
	s.metrics.fileErrors.Inc()
	if len(f.hpas) > 0 {
		s.log.Error("hpa file cannot be read whole: what can is served, and its last good version of the rest stays", "file", path, "err", err, "hpas", len(f.hpas))
	} else {
		s.log.Error("hpa file cannot be read, nothing of it is served", "file", path, "err", err)
	}
}

var errTooLarge = fmt.Errorf("more than %d bytes: not a file of HPAs", maxFileSize)

// readFile reads a file of HPAs. What is read is bounded, not what the file system says of it:
// files of /proc have no size and no end.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return readAtMost(f)
}

func readAtMost(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFileSize+1))
	if len(data) > maxFileSize {
		return nil, errTooLarge
	}
	return data, err
}

// all returns the HPAs of all files in the order of paths; of two with one name the first counts.
func (s *fileSource) all() []hpas.HPA {
	var list []hpas.HPA
	first := map[types.NamespacedName]string{}
	for _, path := range slices.Sorted(maps.Keys(s.files)) {
		for _, h := range s.files[path].hpas {
			if other, ok := first[h.Key()]; ok {
				s.log.Error("two HPAs of one name, the first counts", "hpa", h.Key().String(), "file", path, "first", other)
				continue
			}
			first[h.Key()] = path
			list = append(list, h)
		}
	}
	return list
}

func (s *fileSource) Synced() error {
	if !s.ready.Load() {
		return fmt.Errorf("the HPA files in %s have not been read yet", s.dir)
	}
	return nil
}

// Known is false: files have no controller behind them.
func (s *fileSource) Known(string, string) (*autoscalingv2.HorizontalPodAutoscaler, bool) {
	return nil, false
}
