package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/meshpulse/meshpulse/metricsapi"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/keda"
)

// kedaScaler says where KEDA's external scaler is served, and who may ask it.
type kedaScaler struct {
	guardedPort
	addresses []string
}

func (k *kedaScaler) flags(f *pflag.FlagSet) {
	k.guardedPort = guardedPort{flag: "keda", what: "external scaler", everybody: "ask what ScaledObjects are answered"}
	f.StringVar(&k.address, "keda-address", "", "host:port that serves KEDA's external scaler, gRPC, to ScaledObjects with triggers of type external and external-push (default: off; in a cluster: manifests/components/keda)")
	f.StringSliceVar(&k.addresses, "keda-scaler-addresses", nil, "the scalerAddress, host:port, by which ScaledObjects name it, comma-separated; triggers with others are not read (default meshpulse-keda.NAMESPACE, .svc and .svc.cluster.local, at the port of --keda-address)")
	f.StringVar(&k.certFile, "keda-tls-cert-file", "", "certificate (PEM) that it is served with; read again when it changes (default: plaintext)")
	f.StringVar(&k.keyFile, "keda-tls-private-key-file", "", "key (PEM) of the certificate")
	f.StringVar(&k.clientCAFile, "keda-client-ca-file", "", "CA certificates (PEM) that KEDA's certificate must come from (TriggerAuthentication: tlsClientCert, tlsClientKey)")
	f.StringVar(&k.tokenFile, "keda-token-file", "", "file with the bearer token that must be sent, in a trigger's tokenFromEnv or as gRPC metadata; read again when it changes")
	f.BoolVar(&k.insecure, "keda-insecure", false, "serve it beyond loopback to whoever reaches the port, without a token or client certificates")
}

// kedasService is the name of the Service that leads to it.
const kedasService = "meshpulse-keda"

// complete says what is wrong, and fills in by which addresses it is known.
func (k *kedaScaler) complete(api *metricsapi.Options) error {
	given := ""
	if len(k.addresses) > 0 {
		given = k.addresses[0]
	}
	err := k.guardedPort.complete(given)
	if err != nil || k.address == "" {
		return err
	}
	for _, address := range k.addresses {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("--keda-scaler-addresses %q is no host:port: give what the triggers have as scalerAddress", address)
		}
	}
	api.ScalerAddresses = slices.Clone(k.addresses)
	if len(api.ScalerAddresses) == 0 {
		_, port, _ := net.SplitHostPort(k.address) // it is one
		host := kedasService + "." + cluster.OwnNamespace(api.Kubeconfig)
		for _, suffix := range []string{"", ".svc", ".svc.cluster.local"} {
			api.ScalerAddresses = append(api.ScalerAddresses, net.JoinHostPort(host+suffix, port))
		}
	}
	return nil
}

// kedaServer is the opened port, with what answers there.
type kedaServer struct {
	*openedPort
	server *keda.Server
}

// mostKEDAConnections bounds connections; more wait to be taken. KEDA has one for all triggers of
// the same address and TLS settings.
const mostKEDAConnections = 256

// answer makes what answers on the opened port.
func (k *kedaServer) answer(source keda.Source, r prometheus.Registerer) {
	k.server = keda.New(keda.Options{Source: source, TLS: k.tls, Token: k.token, Registerer: r})
}

// run serves until the context ends.
func (k *kedaServer) run(ctx context.Context) error {
	go k.follow(ctx) // not waited for: its files may hang
	defer context.AfterFunc(ctx, func() {
		ending, cancel := context.WithTimeout(context.Background(), shutdownLimit)
		defer cancel()
		k.server.Shutdown(ending)
	})()
	if err := k.server.Serve(k.listener); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("the external scaler on %s: %w", k.listener.Addr(), err)
	}
	return nil
}
