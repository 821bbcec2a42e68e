// Package browser looks at the pages of meshpulse console with a real browser, and takes the
// pictures that metricsapi/README.md shows. It is tests only.
//
// It knows the command line and the API, as a user and an API server do. It must not know how pages
// are made.
package browser
