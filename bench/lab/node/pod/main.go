// Command pod is what runs in the lab's pods where a cluster would run somebody else's image: the
// container that holds a pod's namespaces (pause), a sidecar (sidecar: a stock Envoy as package
// sidecar runs it), a load tester that sleeps until asked, another adapter of metrics, a
// Prometheus, and probes of what the network lets pass. It knows what it is told by its arguments
// and its environment, and nothing of the cluster.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/meshpulse/meshpulse/bench/sidecar"
)

// inboundPort is where a sidecar takes what comes for the app.
const inboundPort = 15006

// drainTime is how long a sidecar goes on after its pod was told to end: Istio's
// terminationDrainDuration.
const drainTime = 5 * time.Second

// dialTimeout is how long a probe waits for an answer: on one node it takes milliseconds, and a
// packet that is dropped has none.
const dialTimeout = 2 * time.Second

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "pod:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	command := filepath.Base(args[0]) // an image names it as the program that it stands in for
	if len(args) > 1 && !strings.HasPrefix(args[1], "-") {
		command, args = args[1], args[1:]
	}
	switch command {
	case "pause", "loadtester":
		return sleep()
	case "sidecar":
		return runSidecar()
	case "listen":
		return listen(args[1:])
	case "dial":
		return dial(args[1:])
	case "adapter":
		return adapter(args[1:])
	case "prometheus":
		return prometheus(args[1:])
	case "lookup":
		return lookup(args[1:])
	case "never":
		return errors.New("never ready, as asked")
	default:
		return fmt.Errorf("unknown command %q", command)
	}
}

// sleep waits to be told to end, and reaps what is left to it as the first process of a pod.
func sleep() error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return nil
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}

// runSidecar plays Istio's agent: it renders what the pod is into a bootstrap and runs Envoy until
// it is told to end. A pod that names no sink gets none: its Envoy would send nothing.
func runSidecar() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	sink := os.Getenv("SINK")
	if sink == "" {
		<-ctx.Done()
		return nil
	}
	address, err := resolve(ctx, sink)
	if err != nil {
		return fmt.Errorf("sink %s: %w", sink, err)
	}
	options := sidecar.Options{
		Binary: "/usr/local/bin/envoy", Dir: os.TempDir(),
		Pod: os.Getenv("POD_NAME"), Namespace: os.Getenv("POD_NAMESPACE"), Workload: os.Getenv("WORKLOAD"),
		Address: os.Getenv("POD_IP"), InboundPort: inboundPort, AdminPort: 15000,
		Upstreams: []string{net.JoinHostPort(os.Getenv("POD_IP"), os.Getenv("APP_PORT"))}, Sink: address,
	}
	for name, into := range map[string]*map[string]string{"POD_LABELS": &options.Labels, "POD_ANNOTATIONS": &options.Annotations} {
		if err := json.Unmarshal([]byte(os.Getenv(name)), into); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	envoy, err := sidecar.Start(ctx, options)
	if err != nil {
		return err
	}
	fmt.Println("envoy serves on", envoy.Address(), "and sends to", address)
	select {
	case <-envoy.Exited():
		return envoy.Stop() // says how it ended
	case <-ctx.Done():
	}
	time.Sleep(drainTime)
	return envoy.Stop()
}

// resolve returns the address behind host:port. A name that the cluster's DNS does not know yet is
// asked for again, as an Envoy would.
func resolve(ctx context.Context, hostPort string) (string, error) {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return "", err
	}
	for {
		addresses, err := net.DefaultResolver.LookupHost(ctx, host)
		if err == nil {
			return net.JoinHostPort(addresses[0], port), nil
		}
		fmt.Fprintln(os.Stderr, "pod:", err)
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(time.Second):
		}
	}
}

// listen accepts connections on ports until it is told to end.
func listen(ports []string) error {
	for _, port := range ports {
		l, err := net.Listen("tcp", net.JoinHostPort("", port))
		if err != nil {
			return err
		}
		go func() {
			for {
				connection, err := l.Accept()
				if err != nil {
					return
				}
				_ = connection.Close()
			}
		}()
	}
	return sleep()
}

// dial prints a line for each address: what became of a connection to it.
func dial(addresses []string) error {
	for _, address := range addresses {
		connection, err := net.DialTimeout("tcp", address, dialTimeout)
		switch {
		case err == nil:
			_ = connection.Close()
			fmt.Println(address, "passes")
		case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EACCES):
			fmt.Println(address, "refused")
		default:
			return err
		}
	}
	return nil
}

// lookup prints the addresses of a name, one a line.
func lookup(names []string) error {
	for _, name := range names {
		addresses, err := net.LookupHost(name)
		if err != nil {
			return err
		}
		for _, address := range addresses {
			fmt.Println(address)
		}
	}
	return nil
}
