package metricsapi

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

// api is all that is read from an API server and written to it, each over a client of its own, so that none keeps
// another waiting.
type api struct {
	client kubernetes.Interface
	pods   *podIndex
	hpas   *clusterSource
	scales *clusterScales
	events *apiEvents
}

// apiOptions is what connect is told. All fields but kubeconfig are required.
type apiOptions struct {
	// kubeconfig tells the way to the API server; "" means the pod's own service account.
	kubeconfig string
	contain    contain
	log        *slog.Logger
	now        func() time.Time
	// behind is told at each answer how many seconds our clock is behind the API server's.
	behind func(seconds float64)
}

// connect makes the clients. Nothing is asked of the API server before the parts run. An error names the flag.
func connect(o apiOptions) (*api, error) {
	config, err := clientConfig(o.kubeconfig)
	if err != nil {
		return nil, err
	}
	measureClock(config, o.behind, o.now)
	a, err := connectTo(config, o)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig %s: %w", o.kubeconfig, err)
	}
	return a, nil
}

func connectTo(config *rest.Config, o apiOptions) (*api, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	a := &api{client: client}
	pods, err := kubernetes.NewForConfig(paced(config, clientQPS, clientBurst)) // pages follow each other
	if err != nil {
		return nil, err
	}
	if a.pods, err = newPodIndex(pods, o.now); err != nil {
		return nil, err
	}
	a.pods.contain = o.contain
	if a.scales, err = newClusterScales(config); err != nil {
		return nil, err
	}
	events, err := newEventsClient(config)
	if err != nil {
		return nil, err
	}
	a.events = newAPIEvents(events, o.log, o.now)
	a.events.contain = o.contain
	if a.hpas, err = newClusterSource(client, o.contain, o.log, o.now); err != nil {
		return nil, err
	}
	raises, err := autoscalingclient.NewForConfig(paced(config, clientQPS, clientBurst))
	a.hpas.now = raises
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
