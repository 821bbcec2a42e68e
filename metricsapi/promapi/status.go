package promapi

import (
	"fmt"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/common/model"
)

// promqlVersion is that of the Prometheus whose packages answer: clients read from it what they may
// ask for.
var promqlVersion = moduleVersion("github.com/prometheus/prometheus", "3.8.0")

// moduleVersion is the version of Prometheus that a module's version stands for: v0.308.0 is 3.8.0.
func moduleVersion(path, otherwise string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return otherwise
	}
	for _, m := range info.Deps {
		var major, minor, patch int
		if m.Path != path {
			continue
		}
		if n, _ := fmt.Sscanf(m.Version, "v0.%1d%2d.%d", &major, &minor, &patch); n == 3 {
			return fmt.Sprintf("%d.%d.%d", major, minor, patch)
		}
	}
	return otherwise
}

// buildInfo is in the form of Prometheus' own: Grafana goes by the version.
func (a *promAPI) buildInfo(*http.Request) response {
	return dataResponse(map[string]string{
		"version": promqlVersion, "revision": "meshpulse " + a.Version, "branch": "", "buildUser": "", "buildDate": "", "goVersion": runtime.Version(),
	})
}

// runtimeInfo tells what Kiali reads, the retention, and what costs nothing to tell.
func (a *promAPI) runtimeInfo(*http.Request) response {
	return dataResponse(map[string]any{
		"startTime":           a.started.UTC().Format(time.RFC3339Nano),
		"CWD":                 "/",
		"reloadConfigSuccess": true,
		"lastConfigTime":      a.started.UTC().Format(time.RFC3339Nano),
		"corruptionCount":     0,
		"goroutineCount":      runtime.NumGoroutine(),
		"GOMAXPROCS":          runtime.GOMAXPROCS(0),
		"GOMEMLIMIT":          debug.SetMemoryLimit(-1), // asks only
		"storageRetention":    model.Duration(a.Retention).String(),
	})
}

// config tells as much of a configuration as clients read: how often there are samples.
func (a *promAPI) config(*http.Request) response {
	every := model.Duration(a.FlushInterval).String()
	return dataResponse(map[string]string{"yaml": strings.Join([]string{
		"global:",
		"  scrape_interval: " + every,
		"  evaluation_interval: " + every,
		"storage:",
		"  tsdb:",
		"    retention: " + model.Duration(a.Retention).String(),
		"",
	}, "\n")})
}

// healthy answers once there is a server.
func (a *promAPI) healthy(*http.Request) response {
	return textResponse("text/plain; charset=utf-8", []byte("meshpulse is healthy.\n"))
}
