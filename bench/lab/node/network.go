package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"time"
)

// probe is a pod that the NetworkPolicy takes for meshpulse's, with another program in it: what may come in and go out shows without
// meshpulse's help. It is never ready, so that the API server asks none but the real one.
const probe = `apiVersion: v1
kind: Pod
metadata: {name: probe, namespace: meshpulse-system, labels: {app.kubernetes.io/name: meshpulse, probe: "yes"}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: probe
    image: ` + sidecarImage + `
    command: [/pod, listen, "15090", "6443", "8080"]
    ports: [{name: ingest, containerPort: 15090}, {name: https, containerPort: 6443}]
    readinessProbe: {exec: {command: [/pod, never]}}
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Service
metadata: {name: podinfo-headless, namespace: test}
spec: {clusterIP: None, selector: {app: podinfo}, ports: [{name: http, port: 9898, targetPort: http}]}
`

func (n *node) networkSteps() []step {
	return []step{
		{"a headless Service: DNS names its pods", n.headless},
		{"NetworkPolicy: what it allows passes, all else is refused, both ways", n.policed},
	}
}

func (n *node) headless(ctx context.Context) error {
	if err := n.cluster.Apply(ctx, []byte(probe)); err != nil {
		return err
	}
	return n.eventually(ctx, 30*time.Second, func() error {
		pods, err := n.kubectl(ctx, "--namespace=test", "get", "pods", "--selector=app=podinfo", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].status.podIP}")
		if err != nil {
			return err
		}
		found, err := n.kubectl(ctx, "--namespace=test", "exec", "deployment/loadtester", "--container=loadtester", "--", "./loadtester", "lookup",
			"podinfo-headless.test.svc.cluster.local")
		if err != nil {
			return err
		}
		return picture{"addresses": strings.Fields(pods)}.same(picture{"addresses": strings.Fields(found)})
	})
}

// policed dials from and to the probe. A new pod's rules may come a moment after it: what is meant is what holds from then on.
func (n *node) policed(ctx context.Context) error {
	if _, err := n.kubectl(ctx, "--namespace="+namespace, "wait", "--for=jsonpath={.status.phase}=Running", "pod/probe", "--timeout=50s"); err != nil {
		return err
	}
	address, err := n.kubectl(ctx, "--namespace="+namespace, "get", "pod", "probe", "-o", "jsonpath={.status.podIP}")
	if err != nil {
		return err
	}
	podinfo, err := n.kubectl(ctx, "--namespace=test", "get", "service", "podinfo", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	to := func(host string, ports ...string) (all []string) {
		for _, port := range ports {
			all = append(all, net.JoinHostPort(host, port))
		}
		return all
	}
	for _, check := range []struct {
		from          []string
		passes, fails []string
	}{
		{
			[]string{"--namespace=" + namespace, "exec", "probe", "--", "/pod", "dial"},
			[]string{"10.213.96.1:443", nodeIP + ":6443"}, // the API server by its Service and by its own port
			[]string{podinfo + ":9898", "10.213.96.10:53"},
		},
		{
			[]string{"--namespace=test", "exec", "deployment/loadtester", "--container=loadtester", "--", "./loadtester", "dial"},
			append(to(address, "15090", "6443"), podinfo+":9898"),
			to(address, "8080"),
		},
	} {
		if err := n.dials(ctx, check.from, check.passes, check.fails); err != nil {
			return err
		}
	}
	_, err = n.kubectl(ctx, "--namespace="+namespace, "delete", "pod", "probe")
	return err
}

func (n *node) dials(ctx context.Context, from, passes, fails []string) error {
	var want []string
	for _, address := range passes {
		want = append(want, address+" passes")
	}
	for _, address := range fails {
		want = append(want, address+" refused")
	}
	return n.eventually(ctx, 30*time.Second, func() error {
		args := append(append(append([]string{}, from...), passes...), fails...)
		seen, err := n.kubectl(ctx, args...)
		if err != nil {
			return err
		}
		return picture{"connections": append(want, "")}.same(picture{"connections": strings.Split(seen, "\n")})
	})
}

func (n *node) endSteps() []step {
	return []step{
		{"a rolling update of meshpulse, the API asked twice a second: no question is left unanswered", n.rolls},
		{"every sidecar has found the new one", n.covered},
		{"manifests/uninstall.sh leaves nothing", func(ctx context.Context) error {
			if _, err := n.sh(ctx, "manifests/uninstall.sh"); err != nil {
				return err
			}
			if _, err := n.sh(ctx, "kubectl delete -k manifests/examples/app"); err != nil {
				return err
			}
			return n.sameObjects(ctx)
		}},
	}
}

func (n *node) rolls(ctx context.Context) error {
	if err := n.stopLoad(); err != nil {
		return err
	}
	w := n.watch(ctx)
	_, err := n.kubectl(ctx, "--namespace="+namespace, "rollout", "restart", "deployment/meshpulse")
	if err == nil {
		err = n.rollout(ctx, namespace, "meshpulse")
	}
	if err == nil {
		err = n.eventually(ctx, time.Minute, func() error { _, err := n.pod(ctx); return err }) // the old one has gone
	}
	return errors.Join(err, w.end())
}

// covered is an error until an answer says that all sidecars have reported to the new pod, for the HPA that the second guide leaves.
func (n *node) covered(ctx context.Context) error {
	const query = externals + "/namespaces/test/prometheus-query?labelSelector=query-name%3Dprocessed-requests-per-second"
	return n.eventually(ctx, time.Minute, func() error {
		answer, err := n.kubectl(ctx, "get", "--raw", query)
		if err != nil {
			return err
		}
		coverage := regexp.MustCompile(`"meshpulse_coverage":"(\d+)/(\d+)"`).FindStringSubmatch(answer)
		if coverage == nil || coverage[1] != coverage[2] || coverage[1] == "0" {
			return fmt.Errorf("not of all sidecars: %s", answer)
		}
		return nil
	})
}

// servedCertificate is what meshpulse's pod shows.
func (n *node) servedCertificate(ctx context.Context) ([]byte, error) {
	pod, err := n.pod(ctx)
	if err != nil {
		return nil, err
	}
	// Whether it is to be trusted is the API server's business.
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}}
	connection, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(pod.Status.PodIP, "6443"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = connection.Close() }()
	return connection.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw, nil
}
