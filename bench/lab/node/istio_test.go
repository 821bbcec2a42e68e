package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestStockEnvoysCountAsIstiosOnTheSideThatTheyStandOn(t *testing.T) {
	type logger struct {
		Config struct {
			Counters []struct {
				Stat struct {
					Tags []struct {
						Name  string
						Value string `json:"value_format"`
					}
				}
			}
		} `json:"typed_config"`
	}
	var filter struct {
		Spec struct {
			ConfigPatches []struct {
				Match struct{ Context string }
				Patch struct {
					Value struct {
						Config struct {
							AccessLog []logger `json:"access_log"`
						} `json:"typed_config"`
					}
				}
			}
		}
	}
	if err := json.Unmarshal(countAsIstio(), &filter); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, patch := range filter.Spec.ConfigPatches {
		for _, tag := range patch.Patch.Value.Config.AccessLog[0].Config.Counters[0].Stat.Tags {
			if slices.Contains([]string{"reporter", "source_workload", "destination_workload", "source_principal"}, tag.Name) {
				got[patch.Match.Context+" "+tag.Name] = tag.Value
			}
		}
	}
	const workload = "%ENVIRONMENT(ISTIO_META_WORKLOAD_NAME)%"
	want := map[string]string{
		"SIDECAR_INBOUND reporter": "destination", "SIDECAR_INBOUND destination_workload": workload,
		"SIDECAR_INBOUND source_workload": "unknown", "SIDECAR_INBOUND source_principal": "%DOWNSTREAM_PEER_URI_SAN%",
		"GATEWAY reporter": "source", "GATEWAY source_workload": workload,
		"GATEWAY destination_workload": "unknown", "GATEWAY source_principal": "unknown",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestEveryWayOfWiringSaysItsCommands(t *testing.T) {
	n := &node{lab: &lab{root: filepath.Join("..", "..", "..")}}
	for file, want := range map[string]string{
		"bootstrap-override.yaml":       "kubectl -n test apply -f manifests/istio/bootstrap-override.yaml",
		"bootstrap-annotation.yaml":     "kubectl -n test patch deployment podinfo --patch-file manifests/istio/bootstrap-annotation.yaml",
		"mesh-wide-istiooperator.yaml":  "istioctl install -f YOURS.yaml -f mesh-wide-istiooperator.yaml",
		"telemetry-less-volume.yaml":    "kubectl -n test apply -f manifests/istio/telemetry-less-volume.yaml",
		"../components/surge-action/..": "",
	} {
		got, err := n.commandsIn("manifests/istio/" + file)
		if want == "" {
			if err == nil {
				t.Errorf("%s: no error, %q", file, got)
			}
			continue
		}
		if diff := cmp.Diff([]string{want}, got); diff != "" || err != nil {
			t.Errorf("%s: %v %s", file, err, diff)
		}
	}
}

func TestWhereAnAppWasScaledTo(t *testing.T) {
	s := &scaling{}
	for i, replicas := range []int32{1, 1, 2, 3, 3, 2, 1} {
		s.see(time.Unix(int64(i), 0), replicas)
	}
	if err := s.went(2, 3, 1); err != nil {
		t.Error(err)
	}
	if err := s.went(3, 2, 3); err == nil || !strings.Contains(err.Error(), "1 (0 s), 2 (2 s), 3 (3 s), 2 (5 s), 1 (6 s)") {
		t.Errorf("%v does not say where it went", err)
	}
	if err := s.unchangedSince(s.now()); err != nil {
		t.Error(err)
	}
	if err := s.unchangedSince(4); err == nil || !strings.Contains(err.Error(), "to 1 (6 s)") {
		t.Errorf("%v does not say what has changed", err)
	}
}

func TestATelemetryIsSeenInWhatIstiodSends(t *testing.T) {
	const (
		filter = `{"name": "istio.stats", "typedConfig": {"@type": "type.googleapis.com/stats.PluginConfig"%s}}`
		less   = `, "metrics": [{"name": "request_bytes", "drop": true}, {"name": "response_bytes", "drop": true}]`
	)
	dump := func(name string, filters ...string) []byte {
		return fmt.Appendf(nil, `{"configs": [{}, {"dynamicListeners": [{"name": %q, "activeState": {"filters": [%s]}}]}]}`, name, strings.Join(filters, ", "))
	}
	if err := lessVolume(dump("virtualInbound", fmt.Sprintf(filter, less), fmt.Sprintf(filter, less))); err != nil {
		t.Error(err)
	}
	for want, wrong := range map[string][]byte{
		"1 of 2 filters":    dump("virtualInbound", fmt.Sprintf(filter, less), fmt.Sprintf(filter, "")),
		"counts what goes":  dump("0.0.0.0_9898", fmt.Sprintf(filter, less)),
		"no listener has":   dump("virtualInbound"),
		"unexpected end of": nil,
	} {
		if err := lessVolume(wrong); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

func TestWhoIsProvenIsAddedUpByNamespace(t *testing.T) {
	const status = `{"metrics": [{"namespace": "a", "proven": "2/2"}, {"namespace": "a", "proven": "1/3"}, {"namespace": "b", "proven": "0/1"}, {"namespace": "c"}]}`
	for namespace, want := range map[string][2]int{"a": {3, 5}, "b": {0, 1}, "nowhere": {}} {
		if proven, reporting, err := provenIn(status, namespace); err != nil || [2]int{proven, reporting} != want {
			t.Errorf("%s: %d/%d, %v", namespace, proven, reporting, err)
		}
	}
	for _, wrong := range []string{status, "Unauthorized"} {
		if _, _, err := provenIn(wrong, "c"); err == nil {
			t.Errorf("%s: no error", wrong)
		}
	}
}

func TestWhatIsMadeOnceIsNotMadeAgain(t *testing.T) {
	for command, want := range map[string]bool{
		"kubectl -n meshpulse-system create serviceaccount observer":                            true,
		"kubectl create clusterrolebinding meshpulse-observer --clusterrole=meshpulse:observer": true,
		`curl -sk -H "Authorization: Bearer $(kubectl create token observer)" https://x`:        false,
		"kubectl -n meshpulse-system port-forward svc/meshpulse 6443:443 &":                     false,
	} {
		if makes.MatchString(command) != want {
			t.Errorf("%s: makes is not %v", command, want)
		}
	}
}
