package main

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"
)

// byteSize is a flag's value in bytes: a number, or a quantity as Kubernetes writes it (64Mi, 1G),
// or as GOMEMLIMIT is written (64MiB). 64MB is neither, and whoever writes it may mean either.
type byteSize[T int | int64] struct{ bytes *T }

func (b byteSize[T]) String() string {
	if b.bytes == nil { // pflag asks a zero value too
		return "0"
	}
	return fmt.Sprint(*b.bytes)
}

func (byteSize[T]) Type() string { return "bytes" }

func (b byteSize[T]) Set(text string) error {
	number, named := strings.CutSuffix(text, "B")
	quantity, err := resource.ParseQuantity(number)
	if err != nil || named && !strings.ContainsAny(number[len(number)-1:], "i0123456789") {
		return errors.New("not a number of bytes: give one such as 67108864 or 64Mi")
	}
	n := quantity.Value() // rounded up, and anything where it does not fit
	if quantity.Cmp(*resource.NewQuantity(n, resource.BinarySI)) != 0 || int64(T(n)) != n {
		return errors.New("not a whole number of bytes that fits: give one such as 67108864 or 64Mi")
	}
	*b.bytes = T(n)
	return nil
}

// complaints are what is wrong with flags.
type complaints []error

// when adds one where something is wrong.
func (c *complaints) when(wrong bool, format string, args ...any) {
	if wrong {
		*c = append(*c, fmt.Errorf(format, args...))
	}
}

// checkGiven refuses numbers that are not above 0 in the flags that were given. All of them are
// limits and times for which the packages take 0 as not given: it would have no effect, and
// silently.
func checkGiven(f *pflag.FlagSet) error {
	var wrong complaints
	f.Visit(func(given *pflag.Flag) {
		switch given.Value.Type() {
		case "bytes", "int", "duration":
		default:
			return
		}
		if given.Name == "secure-port" { // its 0 is honoured, and the rest is the API's to say
			return
		}
		v := given.Value.String()
		wrong.when(v == "0" || v == "0s" || strings.HasPrefix(v, "-"), "--%s %s is not above 0: leave it out for the default", given.Name, v)
	})
	return errors.Join(wrong...)
}

const (
	// leastMessage is more than the identifier takes that begins a stream, which is tens of KB:
	// below it no sidecar would be heard.
	leastMessage = 128 << 10
	// leastHold is two flushes of Istio's default: below it a sidecar would be silent between two
	// of them.
	leastHold = 10 * time.Second
	// leastRate is twice what a sidecar of 20 label sets sends: below it one of a few could not
	// keep up.
	leastRate = 64 << 10
	// leastSeries is what a few sidecars have, leastSeriesPerPod the metrics of one label set.
	leastSeries, leastSeriesPerPod = 1000, 10
	// leastOpen is how many connections and streams one sender may have whatever others do.
	leastOpen = 16
	// longest is far more than the history of a minute or an hour that HPAs look at.
	longest = 24 * time.Hour
)

// checkSense refuses values under which nothing could work, though each is a number above 0.
func (o *serveOptions) checkSense() error {
	var wrong complaints
	for _, limit := range []struct {
		name               string
		given              any
		low                bool
		than, least, usual string
	}{
		{"max-message-bytes", o.sink.MaxMessageBytes, below(o.sink.MaxMessageBytes, leastMessage), "a sidecar's first message takes, which says who it is", "128Ki", "64Mi"},
		{"max-bytes-per-second", o.sink.MaxBytesPerSecond, below(o.sink.MaxBytesPerSecond, leastRate), "a sidecar sends", "64Ki", "16Mi"},
		{"hold", o.api.Hold, below(o.api.Hold, leastHold), "a sidecar is silent between two flushes", "10s", "5m"},
		{"max-series", o.store.MaxSeries, below(o.store.MaxSeries, leastSeries), "a few sidecars have", "1000", "2000000"},
		{"max-series-per-pod", o.store.MaxSeriesPerPod, below(o.store.MaxSeriesPerPod, leastSeriesPerPod), "the metrics of one caller take", "10", "20000"},
		{"max-streams", o.sink.MaxStreams, below(o.sink.MaxStreams, leastOpen), "one sender may open", "16", "50000"},
		{"max-connections", o.sink.MaxConnections, below(o.sink.MaxConnections, leastOpen), "one sender may open", "16", "what fits"},
	} {
		wrong.when(limit.low, "--%s %v is less than %s: give %s or more, or leave it out for %s", limit.name, limit.given, limit.than, limit.least, limit.usual)
	}
	const tooLong = "--%s %s is more than can be kept in memory: give 24h or less"
	wrong.when(o.store.Retention > longest, tooLong, "retention", o.store.Retention)
	wrong.when(o.store.MaxRetention > longest, tooLong, "max-retention", o.store.MaxRetention)
	wrong.when(slices.ContainsFunc(o.sink.Keep, keepsAll), "--keep %q has an empty prefix, which every metric begins with: give prefixes such as istio_, with a comma between", strings.Join(o.sink.Keep, ","))
	return errors.Join(wrong...)
}

func below[T cmp.Ordered](given, least T) bool {
	var none T
	return given > none && given < least
}

// keepsAll reports whether every metric begins with a prefix of --keep.
func keepsAll(prefix string) bool { return strings.TrimPrefix(prefix, "istiocustom.") == "" }

// expected says how a flag's value is written, of those types whose own errors do not say it.
func expected(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "bool":
		return "true or false"
	case "int":
		return "a whole number"
	case "float64":
		return "a number such as " + f.DefValue
	case "duration":
		return "a time with its unit, such as 30s or 5m"
	}
	return ""
}

// hint says what may have been meant by a flag that there is not, "" where nobody can know.
func hint(f *pflag.FlagSet, unknown *pflag.NotExistError) string {
	if unknown.GetSpecifiedShortnames() != "" { // pflag takes each letter of it for a flag
		return ": flags take two dashes"
	}
	text := unknown.GetSpecifiedName()
	if name := nearest(f, text); 3*changes(text, name) <= len(text) { // a slip, not another thing
		return ": the nearest is --" + name
	}
	return ""
}

// nearest is the flag's name that takes the fewest changes of a letter to come from a text.
func nearest(f *pflag.FlagSet, text string) (name string) {
	fewest := math.MaxInt
	f.VisitAll(func(flag *pflag.Flag) {
		if n := changes(text, flag.Name); n < fewest {
			name, fewest = flag.Name, n
		}
	})
	return name
}

// changes is how many letters have to be put in, left out or replaced to make one text of another
// (Levenshtein's distance).
func changes(from, to string) int {
	row := make([]int, len(to)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(from) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(to) {
			replaced := diagonal
			if from[i] != to[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(to)]
}
