package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func call(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(ctx, args, console{out: &out, err: &err})
	return code, out.String(), err.String()
}

func TestHelpAndVersionSucceedOnStdout(t *testing.T) {
	for want, args := range map[string][]string{
		"Usage:":           {"--help"},
		"meshpulse ":       {"version"},
		"--ingest-address": {"serve", "--help"},
		"--max-series int": {"serve", "-h"},
		"--speed":          {"replay", "--help"},
	} {
		code, stdout, stderr := call(t.Context(), args...)
		if code != exitOK || !strings.Contains(stdout, want) || stderr != "" {
			t.Errorf("%v: got code %d, stderr %q, stdout without %q:\n%s", args, code, stderr, want, stdout)
		}
	}
}

func TestVersionNamesReleaseAndCommitWhereTheyAreKnown(t *testing.T) {
	stamped := []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: "2ba622aef6be0448acc6d611753775af8839374a"}}
	for want, test := range map[[2]string]struct {
		module, release, commit string
		settings                []debug.BuildSetting
	}{
		{"devel", ""}:                    {module: "(devel)"},
		{"devel", "0123456789ab-dirty"}:  {commit: "0123456789ab-dirty"},
		{"devel", "2ba622aef6be"}:        {module: "(devel)", settings: stamped},
		{"v1.2.3", "2ba622aef6be"}:       {module: "v1.2.3", settings: stamped},
		{"v1.2.3", "2ba622aef6be-dirty"}: {module: "v1.2.3", commit: "2ba622aef6be-dirty", settings: stamped},
		{"1.2.3", "2ba622aef6be"}:        {module: "(devel)", release: "1.2.3", settings: stamped},
		{"1.2.3-rc.1", "0123456789ab"}:   {module: "v1.2.2", release: "1.2.3-rc.1", commit: "0123456789ab"},
	} {
		info := &debug.BuildInfo{Main: debug.Module{Version: test.module}, Settings: test.settings}
		if release, commit := versionOf(info, test.release, test.commit); release != want[0] || commit != want[1] {
			t.Errorf("%+v: got %q of commit %q, want %q", test, release, commit, want)
		}
	}
}

func TestWrongCallsNameTheFlagAndExitWithTwo(t *testing.T) {
	dir := t.TempDir()
	standalone := func(args ...string) []string {
		return append([]string{"serve", "--standalone", "--hpa-dir", dir}, args...)
	}
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"no command":                     {nil, []string{"serve, replay"}},
		"an unknown command":             {[]string{"start"}, []string{`"start"`}},
		"an unknown flag":                {standalone("--retentoin=5m"), []string{"--retentoin", "--retention"}},
		"a flag of another spelling":     {standalone("--max-series-a-pod=5"), []string{"--max-series-a-pod", "--max-series-per-pod"}},
		"an unknown flag of replay":      {[]string{"replay", "--taget=127.0.0.1:1", "x.pb"}, []string{"--taget", "--target"}},
		"no room for a message":          {standalone("--max-message-bytes=1"), []string{"--max-message-bytes 1", "128Ki", "leave it out"}},
		"a hold of nothing":              {standalone("--hold=1ns"), []string{"--hold 1ns", "10s", "leave it out"}},
		"a rate that no sidecar keeps":   {standalone("--max-bytes-per-second=1"), []string{"--max-bytes-per-second 1", "64Ki", "leave it out"}},
		"series for nobody":              {standalone("--max-series=1"), []string{"--max-series 1", "1000", "leave it out"}},
		"series for no caller":           {standalone("--max-series-per-pod=1"), []string{"--max-series-per-pod 1", "10", "leave it out"}},
		"a connection":                   {standalone("--max-connections=1"), []string{"--max-connections 1", "16", "leave it out"}},
		"a stream":                       {standalone("--max-streams=1"), []string{"--max-streams 1", "16", "leave it out"}},
		"a retention of a century":       {standalone("--retention=1000000h"), []string{"--retention 1000000h", "24h or less"}},
		"a range of a century":           {standalone("--max-retention=1000000h"), []string{"--max-retention 1000000h", "24h or less"}},
		"a duration without a unit":      {standalone("--retention=5"), []string{`--retention "5"`, "with its unit, such as 30s or 5m"}},
		"a tolerance in per cent":        {standalone("--hpa-tolerance=10%"), []string{`--hpa-tolerance "10%"`, "a number such as 0.1"}},
		"neither true nor false":         {standalone("--standalone=maybe"), []string{`--standalone "maybe"`, "true or false"}},
		"a limit in words":               {standalone("--max-pods=many"), []string{`--max-pods "many"`, "a whole number"}},
		"version of something":           {[]string{"version", "x"}, []string{`"x"`, "leave it out"}},
		"a negative limit":               {standalone("--max-series=-1"), []string{"--max-series"}},
		"a limit of 0":                   {standalone("--max-streams=0"), []string{"--max-streams 0", "leave it out for the default"}},
		"a time of 0":                    {standalone("--hold=0"), []string{"--hold 0s", "leave it out for the default"}},
		"bytes of 0":                     {standalone("--memory-budget=0Mi"), []string{"--memory-budget 0", "leave it out for the default"}},
		"a budget for nothing":           {standalone("--memory-budget=1"), []string{"--memory-budget 1", "32Mi", "leave it out"}},
		"a retention beyond the longest": {standalone("--retention=2h", "--max-retention=1h"), []string{"--retention 2h0m0s", "--max-retention 1h0m0s", "raise"}},
		"a longest range that is short":  {standalone("--max-retention=1m"), []string{"--retention 5m0s", "--max-retention 1m0s", "raise"}},
		"a retention of one flush":       {standalone("--retention=5s"), []string{"--retention 5s", "10s"}},
		"bytes in words":                 {standalone("--max-pending-bytes=64 MiB"), []string{`"64 MiB"`, "--max-pending-bytes", "64Mi"}},
		"bytes of two meanings":          {standalone("--memory-budget=64MB"), []string{`"64MB"`, "--memory-budget", "64Mi"}},
		"bytes of no number":             {standalone("--memory-budget=B"), []string{`"B"`, "--memory-budget", "64Mi"}},
		"half a byte":                    {standalone("--memory-budget=500m"), []string{`"500m"`, "--memory-budget", "64Mi"}},
		"more bytes than there can be":   {standalone("--memory-budget=9000000E"), []string{`"9000000E"`, "--memory-budget", "64Mi"}},
		"a message beyond gRPC's":        {standalone("--max-message-bytes=3GiB"), []string{"--max-message-bytes", "3221225472", "1073741824", "leave it out for the default"}},
		"unfinished messages' bound":     {standalone("--max-pending-bytes=128Mi"), []string{"--max-pending-bytes 134217728", "4 times --max-message-bytes", "67108864", "raise"}},
		"that bound by large messages":   {standalone("--max-pending-bytes=1Gi", "--max-message-bytes=512Mi"), []string{"--max-pending-bytes 1073741824", "4 times --max-message-bytes", "536870912"}},
		"nothing to keep":                {standalone("--keep="), []string{"--keep", "such as istio_"}},
		"an empty prefix to keep":        {standalone("--keep=istio_,,"), []string{`--keep "istio_,,"`, "every metric begins with", "such as istio_"}},
		"istiocustom. to keep":           {standalone("--keep=istiocustom."), []string{`--keep "istiocustom."`, "every metric begins with"}},
		"a custom tag with a dot":        {standalone("--custom-tags=a.b"), []string{"--custom-tags", `"a.b"`}},
		"the HTTPS port for ingest":      {standalone("--ingest-address=127.0.0.1:6443"), []string{"--ingest-address 127.0.0.1:6443", "meshpulse itself", "--secure-port", "ports of their own"}},
		"the HTTPS port for all ingest":  {standalone("--ingest-address=:7443", "--secure-port=7443"), []string{"--ingest-address :7443", "meshpulse itself"}},
		"the ingest port for profiling":  {standalone("--profiling-address=127.0.0.1:15090"), []string{"--profiling-address 127.0.0.1:15090", "meshpulse itself", "--ingest-address"}},
		"an argument to serve":           {standalone("x"), []string{`"x"`}},
		"an ingest address without port": {standalone("--ingest-address=127.0.0.1"), []string{"--ingest-address", "host:port"}},
		"standalone without a folder":    {[]string{"serve", "--standalone"}, []string{"--hpa-dir"}},
		"standalone open to the network": {standalone("--bind-address=0.0.0.0"), []string{"--token-auth-file"}},
		"half a certificate":             {standalone("--tls-cert-file=x"), []string{"--tls-private-key-file"}},
		"half an ingest certificate":     {standalone("--ingest-tls-cert-file=x"), []string{"--ingest-tls-private-key-file"}},
		"client CAs without TLS":         {standalone("--ingest-client-ca-file=x"), []string{"--ingest-tls-cert-file"}},
		"foreign pods":                   {standalone("--foreign-pods=some"), []string{"--foreign-pods", "refuse"}},
		"a log format":                   {standalone("--log-format=xml"), []string{"--log-format", "json"}},
		"a log level":                    {standalone("--log-level=loud"), []string{"--log-level", "debug"}},
		"replay without a target":        {[]string{"replay", "x.pb"}, []string{"--target"}},
		"replay without files":           {[]string{"replay", "--target=127.0.0.1:1"}, []string{"no files"}},
		"replay at speed 0":              {[]string{"replay", "--target=127.0.0.1:1", "--speed=0", "x.pb"}, []string{"--speed"}},
		"replay at no speed":             {[]string{"replay", "--target=127.0.0.1:1", "--speed=-1", "x.pb"}, []string{"speed"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := call(t.Context(), test.args...)
			if code != exitUsage {
				t.Errorf("code: got %d, want %d", code, exitUsage)
			}
			for _, want := range append(test.want, "--help") {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr does not say %q: %s", want, stderr)
				}
			}
		})
	}
}

// A hint that is wrong misleads more than none.
func TestUnknownFlagsAreHintedAtWhereTheyAreNearOne(t *testing.T) {
	for arg, want := range map[string]string{
		"--retentoin=5m":               "unknown flag: --retentoin: the nearest is --retention",
		"--max-series-a-pod":           "unknown flag: --max-series-a-pod: the nearest is --max-series-per-pod",
		"--hodl=5m":                    "unknown flag: --hodl",
		"--completely-different-thing": "unknown flag: --completely-different-thing",
		"--x":                          "unknown flag: --x",
		"-max-streams=5":               "unknown shorthand flag: 'm' in -max-streams=5: flags take two dashes",
		"-hold=5m":                     "-hold=5m is not known: flags take two dashes",
		"-x":                           "unknown shorthand flag: 'x' in -x: flags take two dashes",
	} {
		err := parse(new(serveOptions).flags(console{}), []string{arg})
		if !errors.As(err, new(usageError)) || err.Error() != want {
			t.Errorf("%s: got %v, want %s", arg, err, want)
		}
	}
}

func TestBytesAreWrittenAsInKubernetes(t *testing.T) {
	for text, want := range map[string]int64{
		"67108864": 64 << 20, "64Mi": 64 << 20, "64MiB": 64 << 20, "1G": 1_000_000_000, "1.5Gi": 3 << 29, "0.5k": 500, "7B": 7,
	} {
		var o serveOptions
		f := o.flags(console{})
		if err := parse(f, []string{"--memory-budget", text, "--max-message-bytes", text}); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if o.store.MemoryBudget != want || int64(o.sink.MaxMessageBytes) != want {
			t.Errorf("%s: got %d and %d, want %d", text, o.store.MemoryBudget, o.sink.MaxMessageBytes, want)
		}
	}
}

// TestEveryLimitRefusesZero holds for flags that are yet to come: what 0 means must be said, not
// guessed.
func TestEveryLimitRefusesZero(t *testing.T) {
	var o serveOptions
	o.flags(console{}).VisitAll(func(flag *pflag.Flag) {
		switch flag.Value.Type() {
		case "int", "int64", "uint", "duration", "bytes":
		default:
			return
		}
		var given serveOptions
		f := given.flags(console{})
		if err := parse(f, []string{"--" + flag.Name + "=0"}); err != nil {
			t.Fatal(err)
		}
		if err := checkGiven(f); (err == nil) != (flag.Name == "secure-port") {
			t.Errorf("--%s=0: %v", flag.Name, err)
		}
	})
}

func TestWhatCannotBeOpenedIsNamedAndExitsWithOne(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	address := taken.Addr().String()
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.pem")
	if err := os.WriteFile(garbage, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	standalone := func(args ...string) []string {
		return append([]string{"serve", "--standalone", "--hpa-dir", dir, "--ingest-address=127.0.0.1:0", "--secure-port=0"}, args...)
	}
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"the ingest port is in use":    {standalone("--ingest-address=" + address), []string{"--ingest-address", address, "in use"}},
		"the HTTPS port is in use":     {standalone(fmt.Sprint("--secure-port=", taken.Addr().(*net.TCPAddr).Port)), []string{address, "in use"}},
		"the profiling port is in use": {standalone("--profiling-address=" + address), []string{"--profiling-address", address}},
		"no ingest certificate":        {standalone("--ingest-tls-cert-file="+missing, "--ingest-tls-private-key-file="+missing), []string{"--ingest-tls-cert-file", missing, "no such file", "give a file in PEM"}},
		"a certificate of garbage":     {standalone("--ingest-tls-cert-file="+garbage, "--ingest-tls-private-key-file="+garbage), []string{garbage, "PEM"}},
		"no HPA folder":                {standalone("--hpa-dir=" + missing), []string{missing}},
		"no token file":                {standalone("--token-auth-file=" + missing), []string{missing}},
		"no kubeconfig":                {[]string{"serve", "--ingest-address=127.0.0.1:0", "--bind-address=127.0.0.1", "--secure-port=0", "--kubeconfig=" + missing}, []string{missing}},
		"no recording":                 {[]string{"replay", "--target=" + address, missing}, []string{missing}},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := call(t.Context(), test.args...)
			if code != exitFailed {
				t.Errorf("code: got %d, want %d", code, exitFailed)
			}
			for _, want := range test.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr does not say %q: %s", want, stderr)
				}
			}
		})
	}
}
