// Package web asks HTTP servers of this machine for something, in one call.
//
// It knows nothing of who answers.
package web

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Insecure trusts every certificate: those of the programs here are self-made and in memory, and
// the address is this machine's own.
func Insecure() *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	return &http.Client{Timeout: 30 * time.Second, Transport: transport}
}

// Get returns the body of an answer; one other than 200 is an error.
func Get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	return Do(ctx, client, http.MethodGet, url)
}

// Do is Get with a method of one's own. No body is sent.
func Do(ctx context.Context, client *http.Client, method, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %.300s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}
