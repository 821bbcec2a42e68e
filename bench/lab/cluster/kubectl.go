package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Kubectl runs kubectl as the administrator, with input on its standard input, and returns its
// output.
func (c *Cluster) Kubectl(ctx context.Context, input []byte, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.config.Binary, append([]string{"kubectl", "--kubeconfig=" + c.Kubeconfig}, args...)...)
	cmd.Stdin = bytes.NewReader(input)
	cmd.Env = append(os.Environ(), "HOME="+c.config.Dir) // kubectl's discovery cache belongs to the run
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Apply runs `kubectl apply --server-side` on YAML or JSON documents.
func (c *Cluster) Apply(ctx context.Context, documents []byte) error {
	_, err := c.Kubectl(ctx, documents, "apply", "--server-side", "--force-conflicts", "-f", "-")
	return err
}

// Kubeconfig is one server and one identity: a token or a certificate.
type Kubeconfig struct {
	Server, CAFile    string
	CertFile, KeyFile string
	Token             string
}

// WriteKubeconfig writes k to path.
func WriteKubeconfig(path string, k Kubeconfig) error {
	config := clientcmdapi.NewConfig()
	config.Clusters["lab"] = &clientcmdapi.Cluster{Server: k.Server, CertificateAuthority: k.CAFile}
	config.AuthInfos["lab"] = &clientcmdapi.AuthInfo{ClientCertificate: k.CertFile, ClientKey: k.KeyFile, Token: k.Token}
	config.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: "lab"}
	config.CurrentContext = "lab"
	return clientcmd.WriteToFile(*config, path)
}

// ServiceAccountKubeconfig writes a kubeconfig that holds a fresh token of the service account and
// nothing more, so that its user can do what its RBAC grants and no more. It reaches the API server
// at the URL.
func (c *Cluster) ServiceAccountKubeconfig(ctx context.Context, path, server, namespace, name string) error {
	seconds := int64(24 * 3600)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	answer, err := c.Client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("token of service account %s/%s: %w", namespace, name, err)
	}
	return WriteKubeconfig(path, Kubeconfig{Server: server, CAFile: c.pki("ca.crt"), Token: answer.Status.Token})
}

// AdminClient asks any server of the cluster as the administrator, over HTTPS that the cluster's
// authority vouches for.
func (c *Cluster) AdminClient() *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.CA.PEM)
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			certificate, err := tls.LoadX509KeyPair(c.pki("admin.crt"), c.pki("admin.key"))
			return &certificate, err
		},
	}}}
}
