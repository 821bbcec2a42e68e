package sidecar

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// installed is where `make envoy` leaves the binary, from the project's root.
const installed = ".cache/envoy/envoy"

// EnvoyBinary finds the stock Envoy: $ENVOY_BIN, else what `make envoy` has put into the project's
// .cache folder, looked for from the working directory upwards. The error says what to do.
func EnvoyBinary() (string, error) {
	if path := os.Getenv("ENVOY_BIN"); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("ENVOY_BIN: %w", err)
		}
		return path, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		path := filepath.Join(dir, installed)
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no Envoy: run `make envoy` (python3 fetches it into .cache), or set ENVOY_BIN to an Envoy 1.38 or later")
		}
		dir = parent
	}
}
