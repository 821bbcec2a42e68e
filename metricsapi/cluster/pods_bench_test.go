package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// podList answers as an API server does that has n pods, each as large as a meshed Deployment's pod
// really is.
type podList struct{ n int }

func (l podList) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Query().Get("sendInitialEvents") != "":
		w.WriteHeader(http.StatusUnprocessableEntity) // the client lists instead
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
	case r.URL.Query().Get("watch") != "":
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	default:
		l.page(w, r)
	}
}

// page writes a page of the list, or all of it.
func (l podList) page(w io.Writer, r *http.Request) {
	first, end, next := 0, l.n, ""
	_, _ = fmt.Sscan(r.URL.Query().Get("continue"), &first)
	if limit := 0; r.URL.Query().Get("limit") != "" {
		_, _ = fmt.Sscan(r.URL.Query().Get("limit"), &limit)
		if end = min(first+limit, l.n); end < l.n {
			next = fmt.Sprint(end)
		}
	}
	_, _ = fmt.Fprintf(w, `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9000000","continue":%q},"items":[`, next)
	for i := first; i < end; i++ {
		if i > first {
			_, _ = io.WriteString(w, ",")
		}
		l.pod(w, i)
	}
	_, _ = io.WriteString(w, "]}")
}

// pod writes one of 20 pods of a Deployment, of 10 Deployments of a namespace.
func (podList) pod(w io.Writer, i int) {
	deployment := i / 20
	name, namespace := fmt.Sprintf("service-%04d", deployment), fmt.Sprintf("team-%03d", deployment/10)
	hash := fmt.Sprintf("%010x", 0x9e3779b9*uint64(deployment+1))[:10]
	fields := strings.Repeat(`"f:annotations":{".":{},"f:sidecar.istio.io/status":{}},"f:labels":{".":{},"f:app":{}},`, 12)
	_, _ = fmt.Fprintf(w, `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"%[1]s-%[2]s-%05[3]x","generateName":"%[1]s-%[2]s-",
"namespace":%[4]q,"uid":"6f1b2c3d-0000-4000-8000-%012[3]x","resourceVersion":"%[5]d","creationTimestamp":"2026-11-01T12:00:00Z",
"labels":{"app":%[1]q,"version":"v1","pod-template-hash":%[2]q,"security.istio.io/tlsMode":"istio","service.istio.io/canonical-name":%[1]q,
"service.istio.io/canonical-revision":"v1","app.kubernetes.io/name":%[1]q,"app.kubernetes.io/instance":%[1]q,"app.kubernetes.io/version":"v1",
"app.kubernetes.io/managed-by":"Helm","app.kubernetes.io/part-of":"shop","helm.sh/chart":"%[1]s-1.2.3"},
"annotations":{"sidecar.istio.io/status":%[6]q,"istio.io/rev":"default","kubectl.kubernetes.io/default-container":%[1]q,"prometheus.io/scrape":"true",
"prometheus.io/port":"15020","prometheus.io/path":"/stats/prometheus","checksum/config":"%064[3]x"},
"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"%[1]s-%[2]s","uid":"7a1b2c3d-0000-4000-8000-%012[7]x","controller":true,"blockOwnerDeletion":true}],
"managedFields":[{"manager":"kube-controller-manager","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{%[8]s"f:ownerReferences":{}}}]},
"spec":{"nodeName":"node-%03[7]d","serviceAccountName":%[1]q,"containers":[%[9]s]},
"status":{"phase":"Running","hostIP":"172.16.0.1","podIP":"10.%[10]d.%[11]d.%[12]d","podIPs":[{"ip":"10.%[10]d.%[11]d.%[12]d"},{"ip":"fd00::%03[3]x"}]}}`,
		name, hash, i, namespace, 8_000_000+i, `{"initContainers":["istio-init"],"containers":["istio-proxy"],"volumes":["workload-socket","credential-socket","workload-certs","istio-envoy","istio-data","istio-podinfo","istio-token","istiod-ca-cert"],"imagePullSecrets":null,"revision":"default"}`,
		deployment, fields, container+","+container, i>>16, i>>8&255, i&255)
}

// container is of the size of a sidecar's.
var container = `{"name":"c","image":"registry.example/c:1","env":[` + strings.Repeat(`{"name":"ISTIO_META_SOMETHING","value":"of its workload"},`, 39) +
	`{"name":"POD_IP","valueFrom":{"fieldRef":{"fieldPath":"status.podIP"}}}],"volumeMounts":[` + strings.Repeat(`{"name":"a","mountPath":"/var/run/a"},`, 11) + `{"name":"b","mountPath":"/b"}]}`

// BenchmarkPodIndex reads the pods of a cluster through the real client, informer and transform,
// and weighs what is left of them. The sum for 50,000 pods, and how much more there is while they
// are read, are in manifests/README.md.
func BenchmarkPodIndex(b *testing.B) {
	for _, pods := range []int{5_000, 30_000, 50_000} {
		b.Run(fmt.Sprintf("pods=%d", pods), func(b *testing.B) {
			server := httptest.NewServer(podList{pods})
			defer server.Close()
			defer server.CloseClientConnections()
			client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
			if err != nil {
				b.Fatal(err)
			}
			weigh := func() int64 {
				var m runtime.MemStats
				runtime.GC()
				runtime.GC()
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			weight, peak := int64(0), uint64(0)
			for b.Loop() {
				before := weigh()
				x, err := NewPods(client, time.Now)
				if err != nil {
					b.Fatal(err)
				}
				ctx, cancel := context.WithCancel(b.Context())
				done := make(chan struct{})
				go func() { x.Run(ctx); close(done) }()
				for x.Synced() != nil {
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					peak = max(peak, m.HeapAlloc-min(m.HeapAlloc, uint64(before)))
					time.Sleep(time.Millisecond)
				}
				if n := len(podsOf(x)); n != pods {
					b.Fatalf("%d pods", n)
				}
				weight += weigh() - before
				cancel()
				<-done
				runtime.KeepAlive(x)
			}
			b.ReportMetric(float64(weight)/float64(b.N*pods), "B/pod")
			b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
		})
	}
}
