package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/meshpulse/meshpulse/bench/documents"
	"github.com/meshpulse/meshpulse/bench/process"
)

// reader is somebody who types what the documents say, from the project's root. Several can do so
// side by side, each in a namespace of its own that takes the place of the documents'.
type reader struct {
	*node
	namespace string
	// root is where the commands run: the project's, or a folder with its examples in them for that
	// namespace.
	root string
	// load is the hey that runs now, nil when none does, and hey its arguments.
	load *process.Process
	hey  []string
	// scale is what the app was scaled to since it was watched.
	scale *scaling
	// beside are commands that run on beside the next ones.
	beside []*process.Process
}

// theirs is the namespace that the documents name.
const theirs = "test"

var theirName = regexp.MustCompile(`\btest\b`)

// reader returns one for the namespace.
func (n *node) reader(namespace string) (*reader, error) {
	r := &reader{node: n, namespace: namespace, root: n.root}
	if namespace == theirs {
		return r, nil
	}
	r.root = filepath.Join(n.state, "documents-"+namespace)
	return r, r.copyExamples()
}

// copyExamples writes the folders that name the namespace, with this one's in its place.
func (r *reader) copyExamples() error {
	project := os.DirFS(r.node.root)
	for _, folder := range []string{"manifests/examples", "manifests/istio"} {
		if err := fs.WalkDir(project, folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			content, err := fs.ReadFile(project, path)
			if err != nil {
				return err
			}
			file := filepath.Join(r.root, path)
			return errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(r.ours(string(content))), 0o644))
		}); err != nil {
			return err
		}
	}
	return nil
}

// ours is a text with the reader's namespace.
func (r *reader) ours(text string) string {
	if r.namespace == theirs {
		return text
	}
	return theirName.ReplaceAllString(text, r.namespace)
}

// documented returns the block of the documents that has a command with the text.
func (n *node) documented(text string) (documents.Block, error) {
	return documents.Find(n.documents, text)
}

// do types a block's commands, one after the other. What they leave running beside them ends with
// the block.
func (r *reader) do(ctx context.Context, block documents.Block) error {
	defer r.endBeside()
	for _, c := range block.Commands {
		if _, err := r.typed(ctx, c); err != nil {
			return fmt.Errorf("%s: %s: %w", block, c.Text, err)
		}
	}
	return nil
}

func (r *reader) endBeside() {
	for _, p := range r.beside {
		p.Kill()
	}
	r.beside = nil
}

// looks are commands that change nothing: a reader who is too quick for what came before types them
// again.
var looks = regexp.MustCompile(`^(curl|kubectl( (-n|--namespace)[ =]\S+)? (get|describe|logs|wait|rollout status)) `)

// typed runs one command and returns what it wrote. Those that a document gives a terminal of their
// own run on. A word behind a --raw is held to be in the answer.
func (r *reader) typed(ctx context.Context, c documents.Command) (string, error) {
	command, err := documents.Fill(c.Text, documents.Values(r.image)...)
	if err != nil {
		return "", err
	}
	r.remember(c.Text)
	command = r.ours(command)
	want := ""
	if strings.Contains(command, "get --raw") && !strings.Contains(c.Comment, " ") {
		want = c.Comment
	}
	switch before, isBeside := strings.CutSuffix(command, " &"); {
	case strings.HasPrefix(command, "make "): // for the project's folder; make lab-node has made the image
		return "", nil
	case strings.Contains(command, " hey "):
		return "", r.startLoad(ctx, command)
	case isBeside || strings.HasSuffix(command, " -w"):
		return "", r.startBeside(before)
	case looks.MatchString(command):
		return r.look(ctx, command, want)
	default:
		return r.sh(ctx, command)
	}
}

func (r *reader) startBeside(command string) error {
	name := fmt.Sprintf("%s-beside-%d.log", r.namespace, len(r.beside))
	p, err := process.Start(filepath.Join(r.logs, name), "sh", "-c", "cd "+r.root+" && exec "+command)
	if err == nil {
		r.beside = append(r.beside, p)
	}
	return err
}

func (r *reader) look(ctx context.Context, command, want string) (answer string, err error) {
	err = r.eventually(ctx, 30*time.Second, func() (err error) {
		answer, err = r.sh(ctx, command)
		if err == nil && !strings.Contains(answer, want) {
			err = fmt.Errorf("the answer has no %s: %s", want, answer)
		}
		return err
	})
	return answer, err
}

// sh runs a command from where the reader is.
func (r *reader) sh(ctx context.Context, command string) (string, error) {
	return output(ctx, 5*time.Minute, "sh", "-c", "cd "+r.root+" && "+command)
}

// startLoad runs a guide's hey in its pod. A user reads on while the pods start: here they are
// waited for.
func (r *reader) startLoad(ctx context.Context, command string) error {
	for _, name := range []string{"podinfo", "loadtester"} {
		if err := r.rollout(ctx, r.namespace, name); err != nil {
			return err
		}
	}
	_, hey, found := strings.Cut(command, " -- ")
	if !found {
		return fmt.Errorf("%q runs hey in no pod", command)
	}
	log := filepath.Join(r.logs, "hey-"+r.namespace+".log")
	if err := os.RemoveAll(log); err != nil {
		return err
	}
	var err error
	r.hey = strings.Fields(hey)
	r.load, err = process.Start(log, "sh", "-c", command)
	return err
}

// stopLoad ends hey as Ctrl-C in its own terminal would, and is an error if a request of it was
// answered by anything but 200. It asks until hey has ended: one that kubectl has only begun to
// start has not been there to be asked.
func (r *reader) stopLoad() error {
	if r.load == nil {
		return nil
	}
	p := r.load
	r.load = nil
	for deadline := time.Now().Add(30 * time.Second); !ended(p); {
		if time.Now().After(deadline) {
			p.Kill()
			return errors.New("hey does not end")
		}
		err := processes(func(pid int, command []string) bool {
			if slices.Equal(command, r.hey) {
				_ = syscall.Kill(pid, syscall.SIGINT) // one that has ended needs none
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	report, err := os.ReadFile(p.Log)
	if err != nil {
		return err
	}
	return answered(string(report))
}

// ended waits a second for p to end.
func ended(p *process.Process) bool {
	select {
	case <-p.Exited():
		return true
	case <-time.After(time.Second):
		return false
	}
}

// answered is an error when hey's report has another answer than 200, or a request that was not
// answered. A request that took longer than hey's 20 seconds is not held against anybody: the
// machine was busy.
func answered(report string) error {
	_, codes, found := strings.Cut(report, "Status code distribution:")
	codes, failures, _ := strings.Cut(codes, "Error distribution:")
	bad := !found || strings.Count(codes, "[") != 1 || !strings.Contains(codes, "[200]")
	for line := range strings.Lines(failures) {
		bad = bad || strings.TrimSpace(line) != "" && !strings.Contains(line, "Client.Timeout exceeded")
	}
	if bad {
		return fmt.Errorf("hey was not answered by 200 alone:\n%s", report)
	}
	return nil
}

// remember notes that a command of the documents was run, as they have it.
func (n *node) remember(command string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.typedAlready[command] = true
}

func (n *node) remembers(command string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.typedAlready[command]
}

// rest types every command of the documents that no step has typed yet, in their order, but for the
// one that ends it all.
func (r *reader) rest(ctx context.Context) error {
	for _, block := range r.documents {
		if block.Excuse != "" {
			continue
		}
		if !slices.ContainsFunc(block.Commands, r.isNew) {
			continue
		}
		fmt.Printf("            %s: %s\n", block, block.Commands[0].Text)
		if err := r.do(ctx, block); err != nil {
			return err
		}
	}
	return nil
}

// isNew says whether nobody has typed the command, of those that are for somebody to type here.
func (r *reader) isNew(c documents.Command) bool {
	return !r.remembers(c.Text) && !r.installed(c.Text) && !strings.HasPrefix(c.Text, documents.Uninstall) && !strings.HasPrefix(c.Text, "make ")
}

// installed says whether install.sh was run with all the flags that a document names without the
// rest of the command.
func (n *node) installed(command string) bool {
	args, found := strings.CutPrefix(command, "manifests/install.sh ")
	if !found {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for typed := range n.typedAlready {
		if strings.HasPrefix(typed, "manifests/install.sh ") && strings.Contains(typed, args) {
			return true
		}
	}
	return false
}
