// Package e2e tests the product from outside: real Envoys push to the real binary, and the external
// metrics API is asked what an HPA's controller would ask.
//
// The tests know the command line, the API and what was sent. They must not reach into the process.
package e2e
