package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"maps"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Two replicas know each other by a certificate of an authority of its own, for whoever asks and
// whoever is asked, which upgrades keep.
func TestTwoReplicasKnowEachOtherByACertificateThatStays(t *testing.T) {
	cluster := aCluster()
	install := func(values string) map[string][]byte {
		objects, _ := mustHelm(t, system, values, cluster)
		cluster = aCluster(slices.Collect(maps.Values(objects))...)
		data := map[string][]byte{}
		for _, key := range []string{"tls.crt", "tls.key", "ca.crt"} {
			text, _, err := unstructured.NestedString(objects["Secret "+system+"/meshpulse-peer-cert"], "data", key)
			if err != nil {
				t.Fatal(err)
			}
			if data[key], err = base64.StdEncoding.DecodeString(text); err != nil || len(data[key]) == 0 {
				t.Fatalf("%s is %q (%v)", key, text, err)
			}
		}
		return data
	}
	first := install("replicas: 2")
	pair, err := tls.X509KeyPair(first["tls.crt"], first["tls.key"])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(first["ca.crt"])
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		of := x509.VerifyOptions{DNSName: "meshpulse-peer." + system + ".svc", Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}
		if _, err := pair.Leaf.Verify(of); err != nil {
			t.Errorf("usage %d: %v", usage, err)
		}
	}
	objects, _ := mustHelm(t, system, "replicas: 2", cluster)
	if serving, _, _ := unstructured.NestedString(objects["Secret "+system+"/"+servingCert], "data", "ca.crt"); serving == base64.StdEncoding.EncodeToString(first["ca.crt"]) {
		t.Error("the authority is that of the serving certificate")
	}
	for _, values := range []string{"replicas: 2", "{replicas: 2, certificate: {generation: 2}}"} {
		if again := install(values); !maps.EqualFunc(first, again, bytes.Equal) {
			t.Errorf("%s makes another certificate", values)
		}
	}
}
