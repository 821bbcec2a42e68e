package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestResultsKeepWhatADocumentShows: tables and their rows are kept, and of pictures those that are
// looked at in a document. What else a run leaves, a line a second of each lane, goes with the
// cache.
func TestResultsKeepWhatADocumentShows(t *testing.T) {
	var documents strings.Builder
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && slices.Contains([]string{".cache", ".git", "bin"}, entry.Name()) {
			return fs.SkipDir
		}
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		text, err := os.ReadFile(path)
		documents.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadDir("../results")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range kept {
		switch filepath.Ext(file.Name()) {
		case ".md", ".json":
		case ".svg":
			if !strings.Contains(documents.String(), "results/"+file.Name()+")") {
				t.Errorf("no document shows results/%s", file.Name())
			}
		default:
			t.Errorf("results/%s is no table and no picture", file.Name())
		}
	}
}
