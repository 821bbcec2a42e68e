// Package documents reads the commands that the project's documents tell their readers to type, so
// that they can be run from there and are never a copy of what a document once said. It knows
// Markdown, as far as the documents use it, and not what a command does.
package documents

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Command is one line to type.
type Command struct {
	// Text is what is typed, on one line, and Comment what the document says behind it after " # ".
	Text, Comment string
}

// Block are the commands of a code block, or the one of a code span in the text.
type Block struct {
	// File is relative to the project's root, Line where the block begins.
	File string
	Line int
	// Excuse is why the block is not run on a cluster: the comment <!-- not run: WHY --> before it
	// says so. It excuses the one block, or the one paragraph, that follows it.
	Excuse   string
	Commands []Command
}

func (b Block) String() string { return fmt.Sprintf("%s:%d", b.File, b.Line) }

// cluster are the programs whose commands a cluster answers.
var cluster = regexp.MustCompile(`^(kubectl|istioctl|helm|cmctl|manifests/\w+\.sh)( |$)`)

// span is a code span that is a command for a cluster, not the name of a program alone. A document
// names install.sh without its folder.
var span = regexp.MustCompile(`^(kubectl|istioctl|helm|cmctl|(manifests/)?install\.sh) \S|^manifests/uninstall\.sh`)

// shell are the kinds of fenced blocks whose lines are commands.
var shell = []string{"sh", "bash", "shell", "console"}

// ForCluster says whether one of its commands is for a cluster; the others are then run beside it.
func (b Block) ForCluster() bool {
	return slices.ContainsFunc(b.Commands, func(c Command) bool { return cluster.MatchString(c.Text) })
}

// Names says whether one of its commands has the text.
func (b Block) Names(text string) bool {
	return slices.ContainsFunc(b.Commands, func(c Command) bool { return strings.Contains(c.Text, text) })
}

// Read returns the blocks for a cluster of all documents below the project's root, in the order of
// their files' names and lines. Results of measurements are no documents.
func Read(root string) ([]Block, error) {
	var all []Block
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); rel != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || rel == "bench/results") {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, block := range Parse(string(content)) {
			if block.ForCluster() {
				block.File = filepath.ToSlash(rel)
				all = append(all, block)
			}
		}
		return nil
	})
	return all, err
}

// placeholder is what a reader has to put something of their own in place of.
var placeholder = regexp.MustCompile(`[A-Z]{3,}|…`)

// Fill puts values in place of what a command leaves to its reader; pairs are old, new, as of
// strings.NewReplacer. What is left then is an error.
func Fill(text string, pairs ...string) (string, error) {
	left := text
	for i := 0; i+1 < len(pairs); i += 2 {
		left = strings.ReplaceAll(left, pairs[i], "")
	}
	if open := placeholder.FindString(left); open != "" {
		return "", fmt.Errorf("nobody says what stands for %s in %q", open, text)
	}
	return strings.NewReplacer(pairs...).Replace(text), nil
}
