//go:build race

package e2e

// With the race detector on, the binaries under test have it as well; a race makes them exit with
// code 66.
const raceFlag = "-race"
