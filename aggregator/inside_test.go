package aggregator

import (
	"reflect"
	"sync/atomic"
	"unsafe"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// inside is a field of what belongs to the ring alone, for tests that break its rules on purpose.
// Nobody else reaches it.
func inside[T any](of any, field string) *T {
	return (*T)(unsafe.Pointer(reflect.ValueOf(of).Elem().FieldByName(field).UnsafeAddr()))
}

func claimOf(g *ring.Rows) *atomic.Int64 { return inside[atomic.Int64](g, "claim") }
func headOf(g *ring.Rows) *atomic.Int64  { return inside[atomic.Int64](g, "head") }
func beginOf(g *ring.Rows) *ring.Row     { return inside[ring.Row](g, "begin") }
func lastOf(b *ring.Block) *atomic.Int64 { return inside[atomic.Int64](b, "last") }

// wordsOf are the words of a present row.
func wordsOf(b *ring.Block, row ring.Row) []atomic.Uint64 {
	v := b.At(row)
	return *inside[[]atomic.Uint64](&v, "words")
}

// totalsOf are the totals of a block's counts, none where all are 0.
func totalsOf(b *ring.Block) []atomic.Uint64 {
	all := inside[atomic.Pointer[[]atomic.Uint64]](b, "totals").Load()
	if all == nil {
		return nil
	}
	at := 2 * int(*inside[int32](b, "at"))
	return (*all)[at : at+b.Counts()]
}
