package cluster

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/oauth2"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// usualNamespace is where the manifests install.
const usualNamespace = "meshpulse-system"

// namespaceFile has the namespace of a pod.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// OwnNamespace is where meshpulse runs: the pod's namespace, else the kubeconfig's, else that of
// the manifests.
func OwnNamespace(kubeconfig string) string {
	if kubeconfig == "" {
		if text, err := os.ReadFile(namespaceFile); err == nil && strings.TrimSpace(string(text)) != "" {
			return strings.TrimSpace(string(text))
		}
		return usualNamespace
	}
	if c, err := clientcmd.LoadFromFile(kubeconfig); err == nil && c.Contexts[c.CurrentContext] != nil && c.Contexts[c.CurrentContext].Namespace != "" {
		return c.Contexts[c.CurrentContext].Namespace
	}
	return usualNamespace
}

const (
	// tokenLife is the shortest that an API server gives.
	tokenLife = 10 * time.Minute
	// tokenUse is how much of it a token is used for, so that it does not end on its way.
	tokenUse = 0.8
	// tokenDeadline bounds how long a question waits for one.
	tokenDeadline = 2 * time.Second
)

// Tokens are of a service account, which is no more than what its rights are. They are safe for
// concurrent use, and each is a new one.
type Tokens struct {
	Client          kubernetes.Interface
	Namespace, Name string
	Now             func() time.Time
}

// Token asks the API server for a token of ten minutes. The error names the account.
func (t Tokens) Token() (*oauth2.Token, error) {
	ctx, cancel := context.WithTimeout(context.Background(), tokenDeadline)
	defer cancel()
	seconds := int64(tokenLife / time.Second)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	answer, err := t.Client.CoreV1().ServiceAccounts(t.Namespace).CreateToken(ctx, t.Name, request, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("no token of service account %s/%s: %w", t.Namespace, t.Name, err)
	}
	// By our clock: the API server's may be another.
	life := time.Duration(float64(tokenLife) * tokenUse)
	return &oauth2.Token{AccessToken: answer.Status.Token, Expiry: t.Now().Add(life)}, nil
}
