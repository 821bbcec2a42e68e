package main

import "context"

func (l *lab) runAll(ctx context.Context, paths []string) error { return nil }
