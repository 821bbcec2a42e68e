package main

import (
	"errors"
	"os/exec"
	"path/filepath"

	"github.com/meshpulse/meshpulse/bench/sidecar"
)

// istioVersion is the commit of Istio's that its programs are built from (lab.mk).
const istioVersion = "eed52ebb66ad"

// istioBinary is a program or file of Istio's.
func (l *lab) istioBinary(name string) string {
	return l.binary(filepath.Join("istio-"+istioVersion, name))
}

// istioBuilt are the programs that make builds of Istio.
func (l *lab) istioBuilt() []string {
	var all []string
	for _, name := range []string{"pilot-discovery", "pilot-agent", "istioctl", "envoy_bootstrap_tmpl.json"} {
		all = append(all, l.istioBinary(name))
	}
	return all
}

// istioImages are Istio's two: its control plane, and its agent with an Envoy, which is the stock
// one, and with iptables.
func (l *lab) istioImages(envoy string) ([]image, error) {
	proxy, err := l.iptables()
	if err != nil {
		return nil, err
	}
	programs, err := l.libraries(envoy)
	if err != nil {
		return nil, err
	}
	for target, source := range programs {
		proxy[target] = source
	}
	proxy["usr/local/bin/envoy"] = envoy
	proxy["usr/local/bin/pilot-agent"] = l.istioBinary("pilot-agent")
	proxy["var/lib/istio/envoy/envoy_bootstrap_tmpl.json"] = l.istioBinary("envoy_bootstrap_tmpl.json")
	const user = "1337:1337" // Istio's
	return []image{
		{"lab.local/pilot:lab", map[string]string{"usr/local/bin/pilot-discovery": l.istioBinary("pilot-discovery")}, []string{"/usr/local/bin/pilot-discovery"}, user},
		{"lab.local/proxyv2:lab", proxy, []string{"/usr/local/bin/pilot-agent"}, user},
	}, nil
}

// iptables are the files of iptables under the names that Istio's agent calls it by, with its
// libraries and extensions.
func (l *lab) iptables() (map[string]string, error) {
	program, err := exec.LookPath("iptables")
	if err != nil {
		return nil, err
	}
	if program, err = filepath.EvalSymlinks(program); err != nil {
		return nil, err
	}
	files, err := l.libraries(program)
	if err != nil {
		return nil, err
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, backend := range []string{"", "-nft"} {
			for _, part := range []string{"", "-save", "-restore"} {
				files["usr/sbin/"+family+backend+part] = program
			}
		}
	}
	for _, root := range []string{filepath.Join(l.tools, "root"), "/"} {
		extensions, err := filepath.Glob(filepath.Join(root, "usr/lib*/*/xtables/lib*.so"))
		if err != nil {
			return nil, err
		}
		for _, file := range extensions {
			files[l.target(file)] = file
		}
		if len(extensions) > 0 {
			return files, nil
		}
	}
	return nil, errors.New("no extensions of iptables (xtables/*.so) below /usr/lib: install iptables as a package of the system")
}

// countAsIstio is the EnvoyFilter by which stock Envoys count what Istio's own would: sidecars what
// comes in, gateways what goes out. Who calls is told by no metadata exchange here, so of the
// source only what mTLS proves is known.
func countAsIstio() []byte {
	unknown := map[string]string{
		"source_canonical_revision": "unknown", "source_workload": "unknown", "source_canonical_service": "unknown", "source_app": "unknown",
		"source_workload_namespace": "unknown", "source_principal": "%DOWNSTREAM_PEER_URI_SAN%",
		"destination_principal": "%DOWNSTREAM_LOCAL_URI_SAN%", "connection_security_policy": "mutual_tls",
	}
	const workload, namespace = "%ENVIRONMENT(ISTIO_META_WORKLOAD_NAME)%", "%ENVIRONMENT(POD_NAMESPACE)%"
	inbound := sidecar.StatsLogger(sidecar.Options{Workload: workload, Namespace: namespace, Version: "latest", Tags: unknown})
	outbound := sidecar.StatsLogger(sidecar.Options{
		Workload: workload, Namespace: namespace, Version: "latest", Reporter: sidecar.Source,
		DestinationWorkload: "unknown", DestinationNamespace: "unknown", DestinationVersion: "unknown",
	})
	patch := func(where string, logger map[string]any) map[string]any {
		const manager = "envoy.filters.network.http_connection_manager"
		return map[string]any{
			"applyTo": "NETWORK_FILTER",
			"match":   map[string]any{"context": where, "listener": map[string]any{"filterChain": map[string]any{"filter": map[string]any{"name": manager}}}},
			"patch": map[string]any{"operation": "MERGE", "value": map[string]any{"typed_config": map[string]any{
				"@type":      "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
				"access_log": []any{logger},
			}}},
		}
	}
	return toJSON(map[string]any{
		"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
		"metadata": map[string]any{"name": "count-as-istio", "namespace": "istio-system"},
		"spec":     map[string]any{"configPatches": []any{patch("SIDECAR_INBOUND", inbound), patch("GATEWAY", outbound)}},
	})
}
