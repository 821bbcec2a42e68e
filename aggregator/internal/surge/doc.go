// Package surge tells surges: that the newest flushes hold so many more requests than the minute
// before that chance does not explain it.
//
// A [Detector] is a fold over the rows of pods in the order of their times, so it says the same
// whoever asks and when. What the fold knows:
//
//   - Counts by time, in bins. What a row counted is spread evenly over the time since the pod's
//     row before: a gap is divided by its true length. A row that follows its predecessor sooner
//     than a flush (its clock was set back, it came late, its pod said goodbye) still covers most
//     of one, or the same requests would look twice as dense.
//   - Tested are intervals of 1, 2, … flushes that end (a) now, what has not been sent counting as
//     nothing, and (b) at the watermark, the newest time that every reporting pod has covered.
//   - Dispersion, the relative variance beyond Poisson, for each length on its own, learned in
//     steady traffic.
//   - The surge that is on: a change point.
//
// The package knows counts, times (unix milliseconds, intervals left-open) and pods by the places
// that its caller gives them. It must not know rings, series or PromQL: who reads rows, and what a
// count means, is its caller's.
package surge
