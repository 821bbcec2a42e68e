package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// request is one that a sidecar is to record: its duration goes with it as a header.
type request struct {
	at       time.Duration // from the start
	source   string        // its source_workload
	duration float64       // milliseconds; the sidecar gets them whole
}

// send sends requests to a sidecar over a few connections, each at its time or once the one before
// it on its connection is answered, and returns when all are. (Envoy takes few requests of HTTP/1.1
// ahead of their turn.)
func send(ctx context.Context, address string, requests []request) error {
	const connections = 4
	slices.SortStableFunc(requests, func(a, b request) int { return int(a.at - b.at) })
	g, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	for first := range min(connections, len(requests)) {
		g.Go(func() error { return sendInTurn(ctx, address, began, requests[first:], connections) })
	}
	return g.Wait()
}

// sendInTurn sends every so many of the requests.
func sendInTurn(ctx context.Context, address string, began time.Time, requests []request, every int) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	answers := bufio.NewReader(conn)
	var text []byte
	for i := 0; i < len(requests); i += every {
		r := &requests[i]
		time.Sleep(r.at - time.Since(began))
		text = fmt.Appendf(text[:0], "GET / HTTP/1.1\r\nhost: a\r\nx-source-workload: %s\r\nx-duration: %d\r\n\r\n", r.source, int64(r.duration))
		if _, err := conn.Write(text); err != nil {
			return err
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			return err
		}
		_ = resp.Body.Close() // it has none
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answered %s", address, resp.Status)
		}
	}
	return nil
}
