package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"
)

// byteSize is a flag's value in bytes: a number, or a quantity as Kubernetes writes it (64Mi, 1G). The B of GOMEMLIMIT's form (64MiB)
// may follow it.
type byteSize[T int | int64] struct{ bytes *T }

func (b byteSize[T]) String() string {
	if b.bytes == nil { // pflag asks a zero value too
		return "0"
	}
	return fmt.Sprint(*b.bytes)
}

func (byteSize[T]) Type() string { return "bytes" }

func (b byteSize[T]) Set(text string) error {
	quantity, err := resource.ParseQuantity(strings.TrimSuffix(text, "B"))
	if err != nil {
		return errors.New("not a number of bytes: give one such as 67108864 or 64Mi")
	}
	n := quantity.Value() // rounded up, and anything where it does not fit
	if quantity.Cmp(*resource.NewQuantity(n, resource.BinarySI)) != 0 || int64(T(n)) != n {
		return errors.New("not a whole number of bytes that fits: give one such as 67108864 or 64Mi")
	}
	*b.bytes = T(n)
	return nil
}

// checkGiven refuses numbers that are not above 0 in the flags that were given. All of them are limits and times for which the packages
// take 0 as not given: it would have no effect, and silently.
func checkGiven(f *pflag.FlagSet) error {
	var errs []error
	f.Visit(func(given *pflag.Flag) {
		switch given.Value.Type() {
		case "bytes", "int", "duration":
		default:
			return
		}
		if given.Name == "secure-port" { // its 0 is honoured, and the rest is the API's to say
			return
		}
		if v := given.Value.String(); v == "0" || v == "0s" || strings.HasPrefix(v, "-") {
			errs = append(errs, fmt.Errorf("--%s %s is not above 0: leave it out for the default", given.Name, v))
		}
	})
	return errors.Join(errs...)
}
