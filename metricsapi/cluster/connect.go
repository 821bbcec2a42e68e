package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"k8s.io/client-go/kubernetes"
	autoscalingclient "k8s.io/client-go/kubernetes/typed/autoscaling/v2"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// API is all that is read from an API server and written to it, each over a client of its own, so
// that none keeps another waiting.
type API struct {
	Client kubernetes.Interface
	Pods   *Pods
	HPAs   *HPAs
	// Namespaces is nil where Options do not ask for it.
	Namespaces *Namespaces
	// Replicas is nil where Options name no Service of theirs.
	Replicas *Replicas
	Scales   *Scales
	// ScaledObjects is nil where Options do not ask for it.
	ScaledObjects *ScaledObjects
	Events        *Events

	config *rest.Config
}

// Options is what connect is told. All fields but kubeconfig are required.
type Options struct {
	// Kubeconfig tells the way to the API server; "" means the pod's own service account.
	Kubeconfig string
	// Namespaces: what namespaces say is to be known. NamespacesFirst: before anything is told of
	// HPAs.
	Namespaces, NamespacesFirst bool
	// ScaledObjects: KEDA's are to be known, where it is installed.
	ScaledObjects bool
	// Scaler says whether a scalerAddress of a ScaledObject's trigger leads here; nil: none does.
	Scaler func(address string) bool
	// PeersService is the Service of all replicas, NAMESPACE/NAME, "" if there is one alone;
	// PeersFound is told which there are.
	PeersService string
	PeersFound   func([]Replica)
	Contain      Contain
	Log          *slog.Logger
	Now          func() time.Time
	// Behind is told at each answer how many seconds our clock is behind the API server's.
	Behind func(seconds float64)
}

// Connect makes the clients. Nothing is asked of the API server before the parts run. An error
// names the flag.
func Connect(o Options) (*API, error) {
	config, err := clientConfig(o.Kubeconfig)
	if err != nil {
		return nil, err
	}
	measureClock(config, o.Behind, o.Now)
	a, err := connectTo(config, o)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig %s: %w", o.Kubeconfig, err)
	}
	return a, nil
}

func connectTo(config *rest.Config, o Options) (*API, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	a := &API{Client: client, config: config}
	pods, err := kubernetes.NewForConfig(paced(config, clientQPS, clientBurst)) // pages follow each other
	if err != nil {
		return nil, err
	}
	if a.Pods, err = NewPods(pods, o.Now); err != nil {
		return nil, err
	}
	a.Pods.contain = o.Contain
	if a.Scales, err = newScales(config); err != nil {
		return nil, err
	}
	events, err := newEventsClient(config)
	if err != nil {
		return nil, err
	}
	a.Events = newAPIEvents(events, o.Log, o.Now)
	a.Events.contain = o.Contain
	if a.Events.reports, err = newEventsClient(config); err != nil {
		return nil, err
	}
	if a.HPAs, err = NewHPAs(client, o.Contain, o.Log, o.Now); err != nil {
		return nil, err
	}
	if o.Namespaces {
		if a.Namespaces, err = NewNamespaces(client, a.HPAs.wake, o.Contain, o.Log, o.Now); err != nil {
			return nil, err
		}
		if o.NamespacesFirst {
			a.HPAs.after = a.Namespaces.read.HasSynced
		}
	}
	if o.ScaledObjects || o.Scaler != nil {
		if a.ScaledObjects, err = newScaledObjects(config, client.CoreV1().RESTClient(), o.Contain, o.Log, o.Now); err != nil {
			return nil, err
		}
	}
	if o.Scaler != nil {
		a.HPAs.asking = newAsking(o.Scaler, a.HPAs.wake, o.Log)
		a.ScaledObjects.asking = a.HPAs.asking
	}
	if o.PeersService != "" {
		if a.Replicas, err = NewReplicas(client, o.PeersService, o.PeersFound, o.Contain); err != nil {
			return nil, err
		}
	}
	raises, err := autoscalingclient.NewForConfig(paced(config, clientQPS, clientBurst))
	a.HPAs.api = raises
	return a, err
}

// clientConfig reads the kubeconfig, or the pod's service account where it is "".
func clientConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		c, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("not in a Kubernetes pod: give --kubeconfig FILE, or run on files with --standalone --hpa-dir DIR")
		}
		return c, err
	}
	if f, err := os.Open(kubeconfig); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w: give a file that can be read, or leave the flag out inside a cluster", err)
	} else if err := f.Close(); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig %s is not a kubeconfig with a current context: %w", kubeconfig, err)
	}
	return c, nil
}
