package main

import "context"

func prometheusRows(ctx context.Context, s settings, t *table) error { return nil }
func codeRows(ctx context.Context, s settings, t *table) error       { return nil }
func apiRows(ctx context.Context, s settings, t *table) error        { return nil }
func runSoak(ctx context.Context, args []string) error               { return nil }
func serveExposition(ctx context.Context, args []string) error       { return nil }
