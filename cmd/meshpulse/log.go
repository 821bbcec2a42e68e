package main

import (
	"context"
	"log/slog"
)

// demoting hands on what libraries say: what is information to them is for debugging to us, who log
// at Info only what changes the state of meshpulse.
type demoting struct{ slog.Handler }

func demote(level slog.Level) slog.Level {
	if level < slog.LevelWarn {
		return level - (slog.LevelInfo - slog.LevelDebug)
	}
	return level
}

// Enabled is part of slog.Handler.
func (h demoting) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, demote(level))
}

// Handle is part of slog.Handler.
func (h demoting) Handle(ctx context.Context, r slog.Record) error {
	r.Level = demote(r.Level)
	return h.Handler.Handle(ctx, r)
}

// WithAttrs is part of slog.Handler.
func (h demoting) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoting{h.Handler.WithAttrs(attrs)}
}

// WithGroup is part of slog.Handler.
func (h demoting) WithGroup(name string) slog.Handler { return demoting{h.Handler.WithGroup(name)} }
