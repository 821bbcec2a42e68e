package aggregator

import (
	"testing"
	"unsafe"
)

// A field more in a column costs every series of a mesh the next size class.
func TestAColumnFillsItsSizeClass(t *testing.T) {
	if n := unsafe.Sizeof(column{}); n > 112 {
		t.Errorf("a column takes %d bytes, want 112 at most", n)
	}
}
