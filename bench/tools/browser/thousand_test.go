package browser

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// thousand is how many HPAs BenchmarkAThousandHPAs has.
const thousand = 1000

// serve runs a standalone meshpulse with HPAs and a recorded sidecar that reports again and again,
// until the benchmark ends.
func serve(b *testing.B) (url string, pid int) {
	b.Helper()
	dir := b.TempDir()
	var all strings.Builder
	for i := range thousand {
		fmt.Fprintf(&all, `---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: hpa-%03d, namespace: test}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: app-%03d}
  maxReplicas: 10
  metrics:
  - type: External
    external:
      metric: {name: istio-requests-per-second, selector: {matchLabels: {destination_workload: podinfo, window: %dms}}}
      target: {type: AverageValue, averageValue: "10"}
`, i, i, 30000+i)
	}
	if err := os.WriteFile(filepath.Join(dir, "hpas.yaml"), []byte(all.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	binary := filepath.Join("..", "..", "..", "bin", "meshpulse")
	cmd := exec.CommandContext(b.Context(), binary, "serve", "--standalone", "--hpa-dir", dir, "--log-format", "json", "--ingest-address", "127.0.0.1:0", "--bind-address", "127.0.0.1", "--secure-port", "0")
	log, err := cmd.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var at struct{ Msg, Ingest, HTTPS string }
	lines := bufio.NewScanner(log)
	for at.Msg != "serving" && lines.Scan() {
		at.Msg = ""
		_ = json.Unmarshal(lines.Bytes(), &at) // other lines are others' business
	}
	go func() {
		for lines.Scan() { // so that it can go on writing
		}
	}()
	go func() {
		for b.Context().Err() == nil {
			_ = exec.CommandContext(b.Context(), binary, "replay", "--quiet", "--target", at.Ingest, filepath.Join("..", "..", "..", "envoystats", "testdata", "captures", "a-default", "stream-0.pb.gz")).Run()
		}
	}()
	return "https://" + at.HTTPS, cmd.Process.Pid
}

// cpu is what a process has used.
func cpu(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks int
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// renderers are what the processes of browsers that draw pages have used.
func renderers(b *testing.B) (total time.Duration) {
	b.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(line), "--type=renderer") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			b.Fatal(err)
		}
		total += cpu(b, pid)
	}
	return total
}

// BenchmarkAThousandHPAs measures what a page of a thousand HPAs costs, whose values change with
// each flush: until something is painted, and, over some time, the shares of a core that the
// console, the meshpulse that it asks and the browser's drawing take.
func BenchmarkAThousandHPAs(b *testing.B) {
	server, served := serve(b)
	address, process := console(b, server, "--insecure-skip-tls-verify")
	p := browser(b, address)
	p.open("")
	p.await("all HPAs have values", `document.querySelectorAll('#pieces tr').length === 1000 && [...document.querySelectorAll('#pieces tr')].every(r => /\d+m?\/10/.test(r.textContent))`)
	const over = 20 * time.Second
	for b.Loop() {
		p.open("")
		p.await("painted", `performance.getEntriesByName('first-contentful-paint').length > 0`)
		b.ReportMetric(is[float64](p, `performance.getEntriesByName('first-contentful-paint')[0].startTime`), "ms-to-paint")
		b.ReportMetric(is[float64](p, `performance.getEntriesByType('navigation')[0].responseEnd`), "ms-to-page")
		drawn, asked, shown := cpu(b, process.Process.Pid), cpu(b, served), renderers(b)
		time.Sleep(over)
		share := func(d time.Duration) float64 { return 100 * d.Seconds() / over.Seconds() }
		b.ReportMetric(share(cpu(b, process.Process.Pid)-drawn), "%console")
		b.ReportMetric(share(cpu(b, served)-asked), "%serve")
		b.ReportMetric(share(renderers(b)-shown), "%browser")
	}
}
