// Package fine makes of what sidecars say about a histogram the finest view that it allows.
//
// Classic buckets tell only that a request lies between two bounds, up to a factor of 2.5 apart.
// The summary that a sidecar sends beside them tells ten ranks, each by its cell (cells.go) and its
// place there:
//
//   - Quantile q of n requests is the request of rank ceil(q n). Up to five requests a flush all
//     are known.
//   - The k-th of m requests of a bin is put at k/(m+1) of it (before Envoy 1.38 at k/m, with q n
//     in place of its rank). Two ranks in one bin so tell m, and where the bin's ranks begin and
//     end; so does one, where it is the first or the last of all.
//   - An unknown request lies between its known neighbours and within its bucket. Where, the
//     series' other flushes tell: it is spread as all the window's requests are, after each has
//     been spread evenly (one step of expectation maximisation; more of them begin to fit noise).
//
// What goes in is rows: a [Joiner] takes each flush's buckets and quantiles, makes the shape of
// what it has taken, and spreads that to [Counts], which add up over time and over pods. What comes
// out is Prometheus' native histogram of them. A series that tells no ranks is spread within its
// buckets as a pool of others that do.
//
// The package knows Envoy's bins and Prometheus' histograms. It must not know rings, series or
// pods.
package fine
