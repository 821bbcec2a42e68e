package cluster

import (
	"context"
	"errors"
	"net/http"

	"golang.org/x/oauth2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
)

// Asker asks an API server as another account than meshpulse's own. It is safe for concurrent use.
type Asker struct{ client rest.Interface }

// As asks with tokens of an account, and with nothing else that meshpulse has.
func (a *API) As(tokens oauth2.TokenSource) (*Asker, error) {
	config := rest.AnonymousClientConfig(paced(a.config, clientQPS, clientBurst))
	config.Wrap(transport.ResettableTokenSourceWrapTransport(transport.NewCachedTokenSource(tokens)))
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Asker{client.CoreV1().RESTClient()}, nil
}

// Get is what is at a path, which may have a query. A status that is an error is no err.
func (a *Asker) Get(ctx context.Context, path string) (status int, body []byte, err error) {
	result := a.client.Get().RequestURI(path).SetHeader("Accept", "application/json").MaxRetries(0).Do(ctx)
	result.StatusCode(&status)
	body, err = result.Raw()
	if failed := apierrors.APIStatus(nil); err != nil && status > http.StatusOK && errors.As(err, &failed) {
		return status, body, nil
	}
	return status, body, err
}
