//go:build !unix

package envoystats

// readiness is for systems where a read can be waited for without a buffer.
type readiness struct{}
