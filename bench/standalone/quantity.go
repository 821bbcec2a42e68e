package standalone

import (
	"fmt"
	"strconv"
	"strings"
)

// Quantity reads a Kubernetes quantity with a decimal suffix, such as 10056m or 12k.
func Quantity(s string) (float64, error) {
	number := strings.TrimRight(s, "numkMGTPE")
	factors := map[string]float64{
		"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
	}
	factor, ok := factors[s[len(number):]]
	if !ok {
		return 0, fmt.Errorf("quantity %q: unknown suffix", s)
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, fmt.Errorf("quantity %q: %w", s, err)
	}
	return v * factor, nil
}
