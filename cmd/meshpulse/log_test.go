package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestLibrariesInformAtDebugAndWarnAsTheyDo(t *testing.T) {
	o := serveOptions{logFormat: "json", logLevel: "info"}
	var b bytes.Buffer
	log := slog.New(demoting{o.logger(&b).Handler()}).With("library", "x").WithGroup("group")
	log.Info("chatter")
	if b.Len() > 0 {
		t.Errorf("information of a library is shown at level info: %s", b.String())
	}
	log.Warn("trouble", "key", 1)
	if got := b.String(); !strings.Contains(got, `"level":"WARN"`) || !strings.Contains(got, `"group":{"key":1}`) {
		t.Errorf("got %s", got)
	}
	o.logLevel = "debug"
	slog.New(demoting{o.logger(&b).Handler()}).Info("chatter")
	if got := b.String(); !strings.Contains(got, `"level":"DEBUG"`) {
		t.Errorf("got %s", got)
	}
}
