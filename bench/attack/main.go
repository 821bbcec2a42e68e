// Command attack does to a standalone meshpulse what one sender can, an attack after the other, beside ten victims of a fixed pace, and
// says what it costs them.
//
// It knows the wire and the command line. Everything is bounded in time and count and stays on loopback.
package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/meshpulse/meshpulse/bench/standalone"
)

// result is what an attack has cost.
type result struct {
	Name, What                  string
	Right, Held, Missing, Wrong int     // answers: within 1 %, held or an error that names the attacker, none, and others
	Before, During              float64 // p99 of answers, ms
	Closed                      int64   // victims' connections
	Memory                      float64 // MiB, peak of the resident set
	Ended                       float64 // seconds from SIGTERM to the end
	Exited                      bool    // it ended by itself
	Failure                     string  `json:",omitempty"`
}

func (r result) ok() bool {
	return r.Wrong == 0 && r.Missing == 0 && r.Closed == 0 && !r.Exited && r.Ended <= 5 && r.Failure == ""
}

func main() {
	var (
		binary  = flag.String("binary", "bin/meshpulse", "the meshpulse to attack")
		results = flag.String("results", "bench/results", "folder that takes attack.md and attack.json")
		lasts   = flag.Duration("for", 20*time.Second, "how long each attack lasts")
		memory  = flag.String("memory", "512MiB", "GOMEMLIMIT")
	)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *binary, *results, *memory, *lasts, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "attack:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary, folder, memory string, lasts time.Duration, names []string) error {
	if err := os.Setenv("GOMEMLIMIT", memory); err != nil {
		return err
	}
	var all []result
	bad := 0
	for _, a := range attacks {
		if len(names) > 0 && !slices.Contains(names, a.name) || ctx.Err() != nil {
			continue
		}
		r := try(ctx, binary, a, lasts)
		fmt.Println(r.row())
		if all = append(all, r); !r.ok() {
			bad++
		}
	}
	if len(names) == 0 {
		if err := write(folder, memory, lasts, all); err != nil {
			return err
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d attacks cost the victims something", bad, len(all))
	}
	return ctx.Err()
}

const hpa = `apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: web
  namespace: shop
  annotations:
    metric-config.external.prometheus-query.prometheus/web: |
      ` + query + `
spec:
  maxReplicas: 100
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  metrics:
    - type: External
      external:
        metric:
          name: prometheus-query
          selector: {matchLabels: {query-name: web}}
        target: {type: AverageValue, averageValue: "50"}
`

// try runs one attack against a fresh meshpulse.
func try(ctx context.Context, binary string, a attack, lasts time.Duration) (r result) {
	r = result{Name: a.name, What: a.what}
	dir, err := os.MkdirTemp("", "attack")
	if err != nil {
		r.Failure = err.Error()
		return r
	}
	defer func() { _ = os.RemoveAll(dir) }()
	hpas := filepath.Join(dir, "hpas")
	err = errors.Join(os.Mkdir(hpas, 0o700), os.WriteFile(filepath.Join(hpas, "web.yaml"), []byte(hpa), 0o600))
	if err != nil {
		r.Failure = err.Error()
		return r
	}
	s, err := standalone.Start(ctx, standalone.Options{Binary: binary, Dir: dir, HPADir: hpas, Args: []string{"--retention=60s", "--hold=30s"}})
	if err != nil {
		r.Failure = err.Error()
		return r
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var f fleet
	var senders sync.WaitGroup
	start := time.Now()
	for i := range victims {
		senders.Go(func() { f.run(ctx, s.Ingest, i, start) })
	}
	sleep(ctx, 13*time.Second) // the window is full
	var quiet result
	quiet.watch(ctx, s, 5*time.Second)
	r.Before = quiet.During
	attacking, over := context.WithTimeout(ctx, lasts)
	senders.Go(func() { a.run(attacking, s.Ingest) })
	r.watch(ctx, s, lasts+5*time.Second)
	over()
	r.Closed = f.closed.Load()
	select {
	case <-s.Exited():
		r.Exited = true
	default:
	}
	ended := time.Now()
	if err := s.Stop(); err != nil && !r.Exited {
		r.Failure = err.Error()
	}
	r.Ended = time.Since(ended).Seconds()
	cancel()
	senders.Wait()
	return r
}

// watch asks as an HPA's controller does, four times a second.
func (r *result) watch(ctx context.Context, s *standalone.Server, d time.Duration) {
	var took []float64
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, 250*time.Millisecond) {
		asked := time.Now()
		limited, cancel := context.WithTimeout(ctx, 10*time.Second)
		items, err := s.Values(limited, "shop", "prometheus-query", "query-name=web")
		cancel()
		took = append(took, time.Since(asked).Seconds()*1000)
		if err != nil && strings.Contains(err.Error(), attacker) { // without a cluster nothing can be held: the error names who it is
			r.Held++
			continue
		}
		if err != nil || len(items) != 1 {
			r.Missing++
			r.Failure = fmt.Sprintf("%.300v", err)
			continue
		}
		v, err := standalone.Quantity(items[0].Value)
		switch {
		case err != nil:
			r.Failure = err.Error()
		case math.Abs(v-victims*pace) <= victims*pace/100:
			r.Right++
		case items[0].MetricLabels["meshpulse_reason"] != "":
			r.Held++
		default:
			r.Wrong++
		}
		r.Memory = max(r.Memory, resident(ctx, s))
	}
	slices.Sort(took)
	if len(took) > 0 {
		r.During = took[len(took)*99/100]
	}
}

// resident is the resident set in MiB, 0 if it cannot be asked for.
func resident(ctx context.Context, s *standalone.Server) float64 {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // its own
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/metrics", nil)
	if err != nil {
		return 0
	}
	answer, err := client.Do(request)
	if err != nil {
		return 0
	}
	defer func() { _ = answer.Body.Close() }()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "process_resident_memory_bytes "); ok {
			bytes, _ := strconv.ParseFloat(text, 64)
			return bytes / (1 << 20)
		}
	}
	return 0
}

const head = "| attack | what | right | held | missing | wrong | p99 before, ms | p99, ms | victims closed | resident, MiB | ended in, s | |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n"

func (r result) row() string {
	verdict := "ok"
	if !r.ok() {
		verdict = cmp.Or(strings.ReplaceAll(r.Failure, "|", "/"), "not ok")
	}
	if r.Exited {
		verdict = "it exited"
	}
	return fmt.Sprintf("| %s | %s | %d | %d | %d | %d | %.1f | %.1f | %d | %.0f | %.1f | %s |",
		r.Name, r.What, r.Right, r.Held, r.Missing, r.Wrong, r.Before, r.During, r.Closed, r.Memory, r.Ended, verdict)
}

func write(folder, memory string, lasts time.Duration, all []result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# What one sender can do to others\n\n`make attack`: standalone, GOMEMLIMIT=%s, ten victims of 50 requests a second each, every attack for %s from one address.\n\n%s", memory, lasts, head)
	for _, r := range all {
		b.WriteString(r.row() + "\n")
	}
	j, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.MkdirAll(folder, 0o750),
		os.WriteFile(filepath.Join(folder, "attack.md"), []byte(b.String()), 0o600),
		os.WriteFile(filepath.Join(folder, "attack.json"), append(j, '\n'), 0o600),
	)
}
