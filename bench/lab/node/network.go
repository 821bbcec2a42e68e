package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/bench/documents"
)

// probes are pods: one that the NetworkPolicy takes for meshpulse's, with another program in
// it, so that what may come in and go out shows without meshpulse's help (it is never ready, so
// that the API server asks none but the real one); and one of a namespace that is not of the mesh,
// which is also a DNS that is not in kube-system. A third stands where the mesh's authority would.
const probes = `apiVersion: v1
kind: Pod
metadata: {name: probe, namespace: meshpulse-system, labels: {app.kubernetes.io/name: meshpulse, probe: "yes"}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: probe
    image: ` + sidecarImage + `
    command: [/pod, listen, "15090", "10250", "8080"]
    ports: [{name: ingest, containerPort: 15090}, {name: https, containerPort: 10250}]
    readinessProbe: {exec: {command: [/pod, never]}}
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Pod
metadata: {name: outsider, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 0} # for port 53
  containers: [{name: outsider, image: ` + sidecarImage + `, command: [/pod, listen, "8080", "53", "15012"]}]
---
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: Pod
metadata: {name: istiod, namespace: istio-system}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: istiod, image: ` + sidecarImage + `, command: [/pod, listen, "15012", "15010"]}]
---
apiVersion: v1
kind: Service
metadata: {name: podinfo-headless, namespace: test}
spec: {clusterIP: None, selector: {app: podinfo}, ports: [{name: http, port: 9898, targetPort: http}]}
`

// operatorSteps are what whoever runs meshpulse does and relies on, while the guides are gone
// through.
func (r *reader) operatorSteps() []step {
	var w *watcher
	var served []byte
	return []step{
		{"manifests/install.sh --rotate-cert, the API asked twice a second from here on", func(ctx context.Context) (err error) {
			if served, err = r.servedCertificate(ctx); err != nil {
				return err
			}
			w = r.watch(ctx)
			_, err = r.typed(ctx, documents.Command{Text: "manifests/install.sh --rotate-cert"})
			return err
		}},
		{"a headless Service: DNS names its pods", r.headless},
		{"NetworkPolicy: what it allows passes, all else is refused, both ways", func(ctx context.Context) error {
			return r.policed(ctx, "passes", "refused")
		}},
		{"install.sh --component mesh-namespaces --component dns: no other namespace reports, any DNS is asked", func(ctx context.Context) error {
			if err := r.composed(ctx, " --component mesh-namespaces --component dns"); err != nil {
				return err
			}
			return r.policed(ctx, "refused", "passes")
		}},
		{"install.sh without components takes them back", func(ctx context.Context) error {
			if err := r.composed(ctx, ""); err != nil {
				return err
			}
			if err := r.policed(ctx, "passes", "refused"); err != nil {
				return err
			}
			_, err := r.sh(ctx, "kubectl -n "+namespace+" delete pod probe && kubectl -n default delete pod outsider && kubectl delete namespace istio-system")
			return err
		}},
		{"/debug/hpas with a token of the observer, as the documents say", func(ctx context.Context) error {
			return r.observed(ctx, func(said string) error {
				if !strings.Contains(said, "podinfo") {
					return fmt.Errorf("the HPA is not named: %s", said)
				}
				return nil
			})
		}},
		{"with cert-manager: the API server takes all of it, by cert-manager's own types", r.certManager},
		{"what is planted on a host is seen", r.plant},
		{"the new certificate is served, no question was left unanswered", func(ctx context.Context) error {
			return errors.Join(r.servesAnother(ctx, served), w.end())
		}},
	}
}

// composed runs install.sh with components.
func (r *reader) composed(ctx context.Context, components string) error {
	_, err := r.typed(ctx, documents.Command{Text: documents.Install + " " + documents.Image + components})
	return err
}

func (n *node) headless(ctx context.Context) error {
	for _, name := range []string{"podinfo", "loadtester"} { // which the first guide makes
		if err := n.eventually(ctx, time.Minute, func() error { return n.rollout(ctx, theirs, name) }); err != nil {
			return err
		}
	}
	// A namespace takes pods a moment after it was made.
	if err := n.eventually(ctx, 30*time.Second, func() error { return n.cluster.Apply(ctx, []byte(probes)) }); err != nil {
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

// policed dials from and to the probe, with what becomes of a pod that reports from outside the
// mesh, and of a question to a DNS that is not in kube-system. Rules may come a moment after their
// pod or their policy: what is meant is what holds from then on.
func (n *node) policed(ctx context.Context, outside, dns string) error {
	addresses := map[string]string{}
	for _, pod := range [][]string{{namespace, "probe"}, {"default", "outsider"}, {"istio-system", "istiod"}} {
		if _, err := n.kubectl(ctx, "--namespace="+pod[0], "wait", "--for=jsonpath={.status.phase}=Running", "pod/"+pod[1], "--timeout=50s"); err != nil {
			return err
		}
		var err error
		if addresses[pod[1]], err = n.kubectl(ctx, "--namespace="+pod[0], "get", "pod", pod[1], "-o", "jsonpath={.status.podIP}"); err != nil {
			return err
		}
	}
	podinfo, err := n.kubectl(ctx, "--namespace=test", "get", "service", "podinfo", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	at := func(port string) string { return net.JoinHostPort(addresses["probe"], port) }
	for _, check := range []struct {
		from []string
		want [][2]string
	}{
		{
			[]string{"--namespace=" + namespace, "exec", "probe", "--", "/pod", "dial"},
			// The API server by its Service and by its own port; the mesh's authority where it is,
			// by its one port.
			[][2]string{
				{"10.213.96.1:443", "passes"},
				{nodeIP + ":6443", "passes"},
				{podinfo + ":9898", "refused"},
				{"10.213.96.10:53", "passes"},
				{addresses["outsider"] + ":53", dns},
				{addresses["istiod"] + ":15012", "passes"},
				{addresses["istiod"] + ":15010", "refused"},
				{addresses["outsider"] + ":15012", "refused"},
			},
		},
		{
			[]string{"--namespace=test", "exec", "deployment/loadtester", "--container=loadtester", "--", "./loadtester", "dial"},
			[][2]string{{at("15090"), "passes"}, {at("10250"), "passes"}, {podinfo + ":9898", "passes"}, {at("8080"), "refused"}},
		},
		{
			[]string{"--namespace=default", "exec", "outsider", "--", "/pod", "dial"},
			[][2]string{{at("15090"), outside}, {at("10250"), "passes"}, {at("8080"), "refused"}},
		},
	} {
		if err := n.dials(ctx, check.from, check.want); err != nil {
			return err
		}
	}
	return nil
}

// dials has a pod dial addresses, and is an error when something else becomes of one than is
// wanted.
func (n *node) dials(ctx context.Context, from []string, want [][2]string) error {
	args, lines := slices.Clone(from), []string{""}
	for _, w := range want {
		args, lines = append(args, w[0]), append(lines, w[0]+" "+w[1])
	}
	return n.eventually(ctx, 30*time.Second, func() error {
		seen, err := n.kubectl(ctx, args...)
		if err != nil {
			return err
		}
		return picture{"connections": lines}.same(picture{"connections": strings.Split(seen, "\n")})
	})
}

func (r *reader) endSteps(second *reader) []step {
	return []step{
		{"a rolling update of meshpulse, the API asked twice a second: no question is left unanswered", r.rolls},
		{"as a user that OpenShift would give, and back", r.anotherUser},
		{"install.sh with the components that change the pod: own-namespaces, guaranteed, custom-metrics, host-network, and back", r.otherPods},
		{"every sidecar has found the new one", func(ctx context.Context) error { return r.covered(ctx, elsewhere, processed) }},
		{"manifests/uninstall.sh leaves nothing", func(ctx context.Context) error {
			err := abreast(ctx,
				[]step{{"uninstall.sh", func(ctx context.Context) error {
					_, err := r.typed(ctx, documents.Command{Text: documents.Uninstall})
					return err
				}}},
				[]step{{"the guides' app", r.forget}}, []step{{"the guides' app in " + second.namespace, second.forget}})
			return errors.Join(err, r.sameObjects(ctx))
		}},
	}
}

// forget removes the guides' app: its pods first, since a namespace that is deleted with pods in it
// looks for them again only after half of the time that they may take.
func (r *reader) forget(ctx context.Context) error {
	_, err := r.sh(ctx, "kubectl -n "+r.namespace+" delete deployment --all --cascade=foreground && kubectl delete -k manifests/examples/app --ignore-not-found")
	return err
}

func (n *node) rolls(ctx context.Context) error {
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

// covered is an error until an answer says that all sidecars have reported, to a query of an HPA
// there.
func (n *node) covered(ctx context.Context, namespace, name string) error {
	query := externals + "/namespaces/" + namespace + "/prometheus-query?labelSelector=query-name%3D" + name
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
	return n.servedIn(ctx, namespace)
}

func (n *node) servedIn(ctx context.Context, namespace string) ([]byte, error) {
	pod, err := n.podIn(ctx, namespace)
	if err != nil {
		return nil, err
	}
	// Whether it is to be trusted is the API server's business.
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}}
	connection, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(pod.Status.PodIP, "10250"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = connection.Close() }()
	return connection.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw, nil
}

// servesAnother waits until meshpulse serves another certificate than this.
func (n *node) servesAnother(ctx context.Context, served []byte) error {
	return n.servesAnotherIn(ctx, namespace, served)
}

func (n *node) servesAnotherIn(ctx context.Context, namespace string, served []byte) error {
	return n.eventually(ctx, 3*time.Minute, func() error {
		now, err := n.servedIn(ctx, namespace)
		if err == nil && string(now) == string(served) {
			err = errors.New("meshpulse still serves its first certificate")
		}
		return err
	})
}
