package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestTheConsoleShowsWhatTheKubeconfigMaySee: pages at an address with a token, of the namespace
// that is asked for, until the context ends, streams or not.
func TestTheConsoleShowsWhatTheKubeconfigMaySee(t *testing.T) {
	kubeconfig, _ := seenAPI(t)
	for args, want := range map[string][]string{
		"":             {"1 HPAs of namespace shop", "podinfo</a>", "held"},
		"-A":           {"1 HPAs of all namespaces", "podinfo</a>", "held"},
		"-n forbidden": {"meshpulse:reader"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		out, in := io.Pipe()
		ended := make(chan int)
		go func() {
			ended <- run(ctx, append([]string{"console", "--kubeconfig", kubeconfig, "--context", "shop"}, strings.Fields(args)...), console{out: in, err: in})
			_ = in.Close()
		}()
		printed := bufio.NewReader(out)
		address, err := printed.ReadString('\n')
		if address = strings.TrimSpace(address); err != nil || !strings.HasPrefix(address, "http://127.0.0.1:") {
			t.Fatalf("%q: printed %q: %v", args, address, err)
		}
		go func() { _, _ = io.Copy(io.Discard, printed) }()
		code, body := fetched(t, address)
		for _, text := range want {
			if code != http.StatusOK || !strings.Contains(body, text) {
				t.Errorf("%q: %d, no %q in\n%s", args, code, text, body)
			}
		}
		if strings.ContainsAny(body, "\x1b\u202e") {
			t.Errorf("%q: shows others' text as it is", args)
		}
		stream, err := http.Get(address + "events")
		if err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(stream.Body).ReadString('\n'); err != nil || line != "retry: 2000\n" {
			t.Errorf("%q: the stream begins with %q: %v", args, line, err)
		}
		cancel()
		if code := <-ended; code != exitOK {
			t.Errorf("%q: ends with %d", args, code)
		}
		_ = stream.Body.Close()
	}
}

func TestTheConsoleIsCalledRightly(t *testing.T) {
	kubeconfig, _ := seenAPI(t)
	for args, want := range map[string]string{"shop": "takes flags only", "-o json": "takes no --output", "--port 99999": "--port"} {
		code, _, stderr := call(t.Context(), append([]string{"console", "--kubeconfig", kubeconfig}, strings.Fields(args)...)...)
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%q: code %d, %q", args, code, stderr)
		}
	}
}

func fetched(t *testing.T, url string) (int, string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}
