// Package ring keeps the rows of one pod: one writer, any number of readers, and no lock between
// them.
//
// A row is a flush: a number that only grows ([Row]) and a time. Every series of the pod is a
// column: a block of slots, one a row, all columns of a pod in step, so that row r of each lives at
// slot r & mask. The writer's side is a [Ring], the readers' are [Rows] and the [Block] of each
// column; what may be called shows which side one is on.
//
//  1. claim: the writer raises Rows.claim to r before it touches anything of row r. The slot of row
//     r is that of row r-len(times); so whoever reads claim = c afterwards knows that rows up to
//     c-len(times) may be torn.
//  2. publish: a slot is written before Block.last (or Block.first, for a row before the first)
//     admits its row, and the row's time before any of them. Rows.head follows the time.
//  3. final: a value that first and last admit is never written again, until its row is claimed
//     away. A row's time may be corrected, towards the row before, while its pod is young
//     ([Ring.MeasureFirst], [Ring.PullBack]): a reader takes either for it.
//  4. freeze: a ring that must grow (or be packed) is copied to new rows, every column's block
//     pointer is switched, and the old rows are never written again. A reader that still holds an
//     old block sees the past of the switch, whole.
//
// Rows say which is the first that still is there ([Rows.First]): nobody else derives it from the
// claim, since rows that were overwritten before the ring grew have slots again, which never held
// them.
//
// A reader loads the column's block, then claim and head, finds the rows that it wants among those
// that the claim had not yet taken, then loads first and last, reads the rows that they admit, and
// loads claim again: if the oldest row that it wanted has been claimed in between, it starts over
// ([Block.Torn]). It never waits for the writer: a row that is being written is simply not admitted
// yet. Rows wanted are the same for all columns of a pod, so they are looked up once for many.
//
// Everything shared is a sync/atomic type, so the race detector proves nothing about this protocol;
// aggregator's steps_test.go has readers look after each of the writer's stores, breaks each rule
// on purpose and shows that a wrong value is seen.
//
// A row's time is on our clock, in unix milliseconds; [Clock] makes it of a sidecar's ([Stamp]).
// The package knows words, rows and times. It must not know series, pods or PromQL.
package ring
