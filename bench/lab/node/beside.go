package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/util/cert"
)

// The other adapter, and two of its metrics; its Service's port is not its pod's.
const (
	otherNamespace = "other"
	otherService   = otherNamespace + "/metrics"
	theirExternal  = externals + "/namespaces/test/queue"
	theirCustom    = "/apis/custom.metrics.k8s.io/v1beta1/namespaces/test/pods/*/queue"
	externalAPI    = "v1beta1.external.metrics.k8s.io"
	olderCustomAPI = "v1beta1.custom.metrics.k8s.io"
)

const otherAdapter = `
apiVersion: v1
kind: Namespace
metadata: {name: other}
---
apiVersion: v1
kind: Secret
metadata: {name: certificate, namespace: other}
data: {tls.crt: %[1]s, tls.key: %[2]s}
---
apiVersion: v1
kind: Service
metadata: {name: metrics, namespace: other}
spec: {selector: {app: metrics}, ports: [{port: 443, targetPort: 8443}]}
---
apiVersion: v1
kind: Pod
metadata: {name: metrics, namespace: other, labels: {app: metrics}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: metrics
      image: lab.local/pause:lab
      imagePullPolicy: Never
      command: ["/pod", "adapter", ":8443", "/certificate/tls.crt", "/certificate/tls.key"]
      volumeMounts: [{name: certificate, mountPath: /certificate}]
  volumes: [{name: certificate, secret: {secretName: certificate}}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.external.metrics.k8s.io}
spec: {group: external.metrics.k8s.io, version: v1beta1, groupPriorityMinimum: 100, versionPriority: 100, service: {namespace: other, name: metrics}, caBundle: %[1]s}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.custom.metrics.k8s.io}
spec: {group: custom.metrics.k8s.io, version: v1beta1, groupPriorityMinimum: 100, versionPriority: 100, service: {namespace: other, name: metrics}, caBundle: %[1]s}
`

// besideSteps are the documents' way beside another adapter and back, on a cluster without
// meshpulse.
func (r *reader) besideSteps() []step {
	var specs string
	given := func(ctx context.Context, change func() error) error {
		return r.switched(ctx, func() error {
			return errors.Join(change(), r.expect(ctx, specs, "get", "apiservice", externalAPI, olderCustomAPI, "-o", "jsonpath={.items[*].spec}"),
				r.expect(ctx, "", "get", "apiservice", customAPI, "--ignore-not-found", "-o", "name"))
		})
	}
	taken := func(ctx context.Context, change func() error) error {
		return r.switched(ctx, func() error {
			const both = namespace + " " + namespace
			return errors.Join(change(), r.expect(ctx, both, "get", "apiservice", externalAPI, olderCustomAPI, "-o", "jsonpath={.items[*].spec.service.namespace}"), r.ours503(ctx))
		})
	}
	install := func(ctx context.Context) error {
		_, err := r.sh(ctx, "manifests/install.sh --image "+r.image+" --component custom-metrics --fallback "+otherService)
		return err
	}
	return []step{
		{"another adapter has external and custom metrics", func(ctx context.Context) (err error) {
			if r.before, err = r.objects(ctx); err != nil {
				return err
			}
			if err := r.startOther(ctx); err != nil {
				return err
			}
			specs, err = r.kubectl(ctx, "get", "apiservice", externalAPI, olderCustomAPI, "-o", "jsonpath={.items[*].spec}")
			return err
		}},
		{"install.sh --fallback takes both over: its metrics come by way of meshpulse, through the NetworkPolicy", func(ctx context.Context) error {
			return taken(ctx, func() error { return install(ctx) })
		}},
		{"install.sh --release-apiservice: it has them as it had", func(ctx context.Context) error {
			return given(ctx, func() error { _, err := r.sh(ctx, "manifests/install.sh --release-apiservice"); return err })
		}},
		{"taken over again, and uninstall.sh: the same", func(ctx context.Context) error {
			if err := taken(ctx, func() error { return install(ctx) }); err != nil {
				return err
			}
			return given(ctx, func() error { _, err := r.sh(ctx, "manifests/uninstall.sh"); return err })
		}},
		{"by Helm: taken over, put back, uninstalled", func(ctx context.Context) error { return r.besideByHelm(ctx, specs) }},
		{"the other adapter goes, and nothing is left", func(ctx context.Context) error {
			_, err := r.kubectl(ctx, "delete", "apiservice/"+externalAPI, "apiservice/"+olderCustomAPI, "namespace/"+otherNamespace)
			return errors.Join(err, r.eventually(ctx, time.Minute, func() error { return r.sameObjects(ctx) }))
		}},
	}
}

func (r *reader) startOther(ctx context.Context) error {
	certificate, key, err := cert.GenerateSelfSignedCertKey("metrics.other.svc", nil, nil)
	if err != nil {
		return err
	}
	text := func(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
	if err := r.cluster.Apply(ctx, []byte(fmt.Sprintf(otherAdapter, text(certificate), text(key)))); err != nil {
		return err
	}
	for _, api := range []string{externalAPI, olderCustomAPI} {
		if _, err := r.kubectl(ctx, "wait", "--for=condition=Available", "--timeout=50s", "apiservice/"+api); err != nil {
			return err
		}
	}
	return nil
}

// ours503 is an error where what is meshpulse's own is answered by somebody else: no sidecar
// reports, and meshpulse says so.
func (r *reader) ours503(ctx context.Context) error {
	answer, err := r.kubectl(ctx, "get", "--raw", externals+"/namespaces/test/istio-requests-per-second?labelSelector=destination_workload%3Dpodinfo")
	if err == nil || !strings.Contains(err.Error(), "no sidecar") {
		return fmt.Errorf("what is meshpulse's own: %s, %w", answer, err)
	}
	return nil
}

// taking has Helm write into APIServices that somebody else has made.
const taking = " --take-ownership --force-conflicts --wait"

// besideByHelm does with the chart what the scripts do.
func (r *reader) besideByHelm(ctx context.Context, specs string) error {
	if _, err := output(ctx, time.Minute, "ctr", "--namespace", "k8s.io", "images", "tag", "--force", imageName, chartImage); err != nil {
		return err
	}
	for _, c := range []struct{ command, namespaces string }{
		// First the pod, then the API: Helm makes both at once, and would not wait for the pod.
		{"helm -n kube-system install asm-custom-metrics ./manifests/chart --wait --set apiService.enabled=false,customMetrics.enabled=true,fallback.service=" + otherService, otherNamespace + " " + otherNamespace},
		{release + taking + " --set apiService.enabled=true", helmed + " " + helmed},
		{release + taking + " --set fallback.putBack=true", otherNamespace + " " + otherNamespace},
		{"helm -n kube-system uninstall asm-custom-metrics --wait", otherNamespace + " " + otherNamespace},
	} {
		if err := r.switched(ctx, func() error {
			_, err := r.sh(ctx, c.command)
			return errors.Join(err, r.expect(ctx, c.namespaces, "get", "apiservice", externalAPI, olderCustomAPI, "-o", "jsonpath={.items[*].spec.service.namespace}"))
		}); err != nil {
			return fmt.Errorf("%s: %w", c.command, err)
		}
	}
	return errors.Join(r.expect(ctx, specs, "get", "apiservice", externalAPI, olderCustomAPI, "-o", "jsonpath={.items[*].spec}"),
		r.expect(ctx, "", "get", "apiservice", customAPI, "--ignore-not-found", "-o", "name"))
}

// switchMay is how many questions in a row, one a second, may fail while an API changes hands.
const switchMay = 2

// switched asks for the other adapter's metrics each second while something changes, and for ten
// seconds after it. What may fail is the switch itself, of each API.
func (r *reader) switched(ctx context.Context, change func() error) error {
	asking, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	var failed [2][]error
	for i, path := range []string{theirExternal, theirCustom} {
		all.Go(func() {
			for asking.Err() == nil {
				answer, err := r.cluster.Client.RESTClient().Get().AbsPath(path).Timeout(time.Minute).DoRaw(asking)
				if err == nil && !strings.Contains(string(answer), `"value":"7"`) {
					err = fmt.Errorf("%s: %s", path, answer)
				}
				if err != nil && asking.Err() == nil {
					failed[i] = append(failed[i], fmt.Errorf("%s: %w", time.Now().Format(time.TimeOnly), err))
				}
				select {
				case <-asking.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
	err := change()
	if err == nil {
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Second):
		}
	}
	stop()
	all.Wait()
	for _, f := range failed {
		if len(f) > switchMay {
			err = errors.Join(err, fmt.Errorf("%d questions were not answered: %w", len(f), errors.Join(f...)))
		}
	}
	fmt.Printf("            not answered while it changed: %d of external, %d of custom metrics\n", len(failed[0]), len(failed[1]))
	return err
}
