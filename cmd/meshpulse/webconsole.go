package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"k8s.io/client-go/rest"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/pages"
)

const consoleText = `Serves a page on this machine that shows every HPA, the worst first, and one with plots and its explanation, live.
It prints the page's address, which nobody can guess, and serves it until Ctrl-C. The page sees what you may see.

  meshpulse console -A                            the HPAs of all namespaces
  meshpulse console -n test                       those of one`

// webConsole serves the pages until the context ends.
func webConsole(ctx context.Context, args []string, c console) error {
	a := newAsking("console", consoleText, true, c)
	port := a.flags.Uint16("port", 0, "the port on 127.0.0.1, 0 for a free one")
	if err := a.parse(args); err != nil {
		return err
	}
	switch {
	case a.flags.NArg() > 0:
		return usageError{fmt.Errorf("console takes flags only, not %q", a.flags.Arg(0))}
	case a.output != "":
		return usageError{errors.New("console serves pages, so it takes no --output: top has it")}
	}
	namespace, err := a.namespace()
	if err != nil {
		return err
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(*port))))
	if err != nil {
		return fmt.Errorf("%w: leave --port out for a free one", err)
	}
	scope := "all namespaces"
	if namespace != "" {
		scope = "namespace " + namespace
	}
	p, err := pages.New(pages.Config{Source: remote{client, namespace}, Address: l.Addr().String(), Scope: scope, Every: watchEvery})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	if _, err := fmt.Fprintf(c.out, "%s\nIt shows %s, to whoever has this address. Ctrl-C ends it.\n", p.URL(), explain.Printable(scope)); err != nil {
		return errors.Join(err, l.Close())
	}
	return serveUntil(ctx, &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second}, l)
}

// serveUntil serves until the context ends; pages that are open then lose their streams.
func serveUntil(ctx context.Context, s *http.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// remote has explanations from a running meshpulse, as top and explain do.
type remote struct {
	client    *rest.RESTClient
	namespace string // "" for all
}

func (r remote) List(ctx context.Context) (list explain.List, err error) {
	return list, r.get(ctx, &list, path(r.namespace, "explanations"))
}

func (r remote) One(ctx context.Context, namespace, name string, ago time.Duration) (e explain.Explanation, err error) {
	at := ""
	if ago > 0 {
		at = "-" + ago.String()
	}
	return e, r.get(ctx, &e, path(namespace, "explanations", name), "at", at)
}

func (r remote) get(ctx context.Context, into any, path string, parameters ...string) error {
	body, err := get(ctx, r.client, path, parameters...)
	if err != nil {
		return err
	}
	return read(body, into)
}
