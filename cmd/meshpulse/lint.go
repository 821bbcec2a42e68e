package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/meshpulse/meshpulse/envoystats"
	"github.com/meshpulse/meshpulse/metricsapi"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

const lintText = `Reads HPAs, and KEDA's ScaledObjects with Prometheus triggers, out of files as a server does, and says of each whether
it is served, is doubtful and why, or cannot be served. It needs neither a cluster nor a server.

  meshpulse lint manifests/examples/*.yaml

A ScaledObject comes with the HPA that would take its place. It ends with 1 if one cannot be served or read.`

// errUnservable is a lint that has said why.
var errUnservable = errors.New("lint: not all can be served, see above")

// lintFiles parses the flags and judges the files.
func lintFiles(args []string, c console) error {
	var o struct {
		keep, tags []string
		output     string
	}
	f := newFlags("lint", lintText, c)
	f.StringSliceVar(&o.keep, "keep", nil, "as of serve")
	f.StringSliceVar(&o.tags, "custom-tags", nil, "as of serve")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	if err := parse(f, args); err != nil {
		return err
	}
	switch {
	case f.NArg() == 0:
		return usageError{errors.New("no files to read: name some with HPAs, in YAML or JSON")}
	case o.output != "text" && o.output != "json":
		return usageError{fmt.Errorf("--output %q is neither text nor json", o.output)}
	}
	sink := envoystats.Config{Keep: o.keep, CustomTags: o.tags}
	if err := sink.Validate(); err != nil {
		return usageError{err}
	}
	l := linter{words: hpas.Vocabulary{Keeps: sink.Keeps, Tags: sink.CustomTags}, text: o.output == "text", out: c.out}
	for _, path := range f.Args() {
		if err := l.file(path); err != nil {
			return err
		}
	}
	return l.end()
}

// linter goes through files and remembers whether all was well.
type linter struct {
	words hpas.Vocabulary
	text  bool
	out   io.Writer

	found []metricsapi.Finding
	// unread are documents that are no HPA, by their files and lines.
	unread []string
	bad    bool
}

func (l *linter) file(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("lint: %w: give files that can be read", err)
	}
	found, refused, err := metricsapi.Lint(path, data, l.words)
	if err != nil {
		return err
	}
	l.found = append(l.found, found...)
	for _, finding := range found {
		l.bad = l.bad || finding.Verdict == metricsapi.VerdictRefused
	}
	for _, r := range refused {
		l.unread, l.bad = append(l.unread, path+": "+r.Error()), true
	}
	return nil
}

// end prints what was found.
func (l *linter) end() error {
	var err error
	if l.text {
		_, err = io.WriteString(l.out, l.report())
	} else {
		e := json.NewEncoder(l.out)
		e.SetIndent("", "  ")
		err = e.Encode(map[string]any{"findings": append([]metricsapi.Finding{}, l.found...), "unread": append([]string{}, l.unread...)})
	}
	if err == nil && l.bad {
		err = errUnservable
	}
	return err
}

func (l *linter) report() string {
	var b strings.Builder
	for _, f := range l.found {
		fmt.Fprintf(&b, "%s: %s %s/%s: %s\n", f.File, f.Kind, f.Namespace, f.Name, f.Verdict)
		for _, p := range f.Problems {
			fmt.Fprintf(&b, "  %s: %s\n", p.Reason, strings.ReplaceAll(p.Message, "\n", "\n    "))
		}
		for _, d := range f.Differs {
			fmt.Fprintf(&b, "  not in an HPA: %s\n", d)
		}
		if f.Replacement != nil {
			b.WriteString("  the HPA in its place:\n" + indented(f.Replacement))
		}
	}
	for _, unread := range l.unread {
		fmt.Fprintf(&b, "%s\n", unread)
	}
	return b.String()
}

// indented is an object as it would be applied.
func indented(object any) string {
	content, err := yaml.Marshal(object)
	if err != nil {
		return "    " + err.Error() + "\n"
	}
	text, _, _ := strings.Cut(string(content), "\nstatus:") // which a server writes
	return "    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ") + "\n"
}
