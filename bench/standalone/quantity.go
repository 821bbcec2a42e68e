package standalone

import (
	"fmt"
	"strconv"
	"strings"
)

// Quantity reads a Kubernetes quantity with a decimal suffix, such as 10056m or 12k.
func Quantity(s string) (float64, error) {
	number := strings.TrimRight(s, "numkMGTPE")
	exponents := map[string]string{
		"n": "e-9", "u": "e-6", "m": "e-3", "": "", "k": "e3", "M": "e6", "G": "e9", "T": "e12", "P": "e15", "E": "e18",
	}
	exponent, ok := exponents[s[len(number):]]
	if !ok {
		return 0, fmt.Errorf("quantity %q: unknown suffix", s)
	}
	v, err := strconv.ParseFloat(number+exponent, 64)
	if err != nil {
		return 0, fmt.Errorf("quantity %q: %w", s, err)
	}
	return v, nil
}
