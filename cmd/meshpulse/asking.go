package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/term"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// asking is how top, explain, query and pods reach a running meshpulse: through the API server of a
// kubeconfig, as kubectl does, or with --server at one that is standalone.
type asking struct {
	console console
	config  *genericclioptions.ConfigFlags
	flags   *pflag.FlagSet
	output  string
	all     bool // namespaces
}

const askingText = `
It asks through the API server of the kubeconfig, as kubectl does: linked as kubectl-meshpulse it is kubectl meshpulse.
Standalone: --server https://127.0.0.1:6443 --insecure-skip-tls-verify, and --token where there is a token file.`

// newAsking returns the flags that all of them have.
func newAsking(name, text string, namespaced bool, c console) *asking {
	a := &asking{console: c, config: genericclioptions.NewConfigFlags(true), flags: newFlags(name, text+askingText, c)}
	a.flags.StringVarP(&a.output, "output", "o", "", "json, yaml, jsonpath=… or go-template=…, in place of text")
	if namespaced {
		a.flags.BoolVarP(&a.all, "all-namespaces", "A", false, "all namespaces")
	}
	return a
}

// parse reads the flags, and those of kubectl, all of which there are. --help shows those that most
// need.
func (a *asking) parse(args []string) error {
	kubectls := pflag.NewFlagSet("", pflag.ContinueOnError)
	a.config.AddFlags(kubectls)
	shown := []string{"kubeconfig", "context", "namespace", "server", "token", "certificate-authority", "insecure-skip-tls-verify"}
	kubectls.VisitAll(func(f *pflag.Flag) { f.Hidden = !slices.Contains(shown, f.Name) })
	a.flags.AddFlagSet(kubectls)
	return parse(a.flags, args)
}

// namespace is the one that is asked for, "" for all.
func (a *asking) namespace() (string, error) {
	if a.all {
		return "", nil
	}
	namespace, _, err := a.config.ToRawKubeConfigLoader().Namespace()
	return namespace, err
}

// path is that of a resource of the group, in a namespace or, with "", in all.
func path(namespace, resource string, name ...string) string {
	parts := []string{"/apis", explain.Group, explain.Version}
	if namespace != "" {
		parts = append(parts, "namespaces", namespace)
	}
	return strings.Join(append(append(parts, resource), name...), "/")
}

// client speaks to the API server.
func (a *asking) client() (*rest.RESTClient, error) {
	config, err := a.config.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("%w: give --kubeconfig, or --server for a standalone meshpulse", err)
	}
	config.APIPath, config.GroupVersion = "/apis", &schema.GroupVersion{Group: explain.Group, Version: explain.Version}
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	config.AcceptContentTypes, config.ContentType = "application/json", "application/json"
	return rest.RESTClientFor(config)
}

// get asks for a path with parameters, in pairs.
func (a *asking) get(ctx context.Context, path string, parameters ...string) ([]byte, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	return get(ctx, client, path, parameters...)
}

func get(ctx context.Context, client *rest.RESTClient, path string, parameters ...string) ([]byte, error) {
	request := client.Get().AbsPath(path)
	for pair := range slices.Chunk(parameters, 2) {
		if pair[1] != "" {
			request = request.Param(pair[0], pair[1])
		}
	}
	body, err := request.DoRaw(ctx)
	return body, remedied(err)
}

// post sends an object and returns what came of it.
func (a *asking) post(ctx context.Context, path string, object any) ([]byte, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	content, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	body, err := client.Post().AbsPath(path).Body(content).DoRaw(ctx)
	return body, remedied(err)
}

// remedied says with an error of the API server what helps.
func remedied(err error) error {
	var status apierrors.APIStatus
	if err == nil || !errors.As(err, &status) {
		if err != nil && strings.Contains(err.Error(), "x509") {
			return fmt.Errorf("%w: a standalone meshpulse's certificate is self-made: --insecure-skip-tls-verify, or --certificate-authority FILE", err)
		}
		return err
	}
	details := status.Status().Details
	switch code := status.Status().Code; {
	case code == http.StatusNotFound && (details == nil || details.Group != explain.Group || details.Name == ""):
		return fmt.Errorf("%w: this API server does not know the group %s: apply manifests/components/own-api, or give --server for a standalone meshpulse", err, explain.Group)
	case code == http.StatusServiceUnavailable:
		return fmt.Errorf("%w: see kubectl get apiservice %s.%s", err, explain.Version, explain.Group)
	case code == http.StatusForbidden:
		return fmt.Errorf("%w: the ClusterRole meshpulse:reader gives that in a namespace (kubectl create rolebinding), meshpulse:observer for queries and all namespaces", err)
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%w: who asks is not known: give --token, or a kubeconfig with credentials", err)
	}
	return err
}

// notOurs is what to do about an answer that is not one of meshpulse's.
const notOurs = "is it meshpulse that answers, and of this version? --server, or kubectl get apiservice v1alpha1.meshpulse.io, tells who does"

// read reads an answer into a value.
func read(body []byte, into any) error {
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("the answer cannot be read: %w: %s", err, notOurs)
	}
	return nil
}

// shown writes an answer as it is where --output asks for that, and reads it into a value where it
// does not.
func (a *asking) shown(body []byte, into any) (bool, error) {
	if a.output != "" {
		return true, a.structured(body)
	}
	return false, read(body, into)
}

// answered asks for a path with parameters, in pairs, and does with the answer as shown does.
func (a *asking) answered(ctx context.Context, into any, path string, parameters ...string) (shown bool, err error) {
	body, err := a.get(ctx, path, parameters...)
	if err != nil {
		return false, err
	}
	return a.shown(body, into)
}

// structured prints an answer as --output says. No text of others reaches the terminal as it is: in
// JSON as the escapes that mean the same.
func (a *asking) structured(body []byte) error {
	object := &unstructured.Unstructured{}
	if err := json.Unmarshal(body, &object.Object); err != nil {
		return fmt.Errorf("the answer cannot be read: %w: %s", err, notOurs)
	}
	f := genericclioptions.NewPrintFlags("")
	f.OutputFormat = &a.output
	printer, err := f.ToPrinter()
	if err != nil {
		return usageError{fmt.Errorf("--output: %w", err)}
	}
	var b bytes.Buffer
	if err := printer.PrintObj(object, &b); err != nil {
		return err
	}
	return a.print(b.String())
}

// print writes a text, as it may be shown.
func (a *asking) print(text string) error {
	_, err := io.WriteString(a.console.out, explain.PrintableLines(text))
	return err
}

// width is that of the terminal, 0 where the output is none.
func (a *asking) width() int {
	if f, ok := a.console.out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			return width
		}
	}
	return 0
}

// plotSize is that of a plot.
func (a *asking) plotSize() (width, height int) {
	const usual, high = 100, 10
	if width = a.width(); width == 0 {
		width = usual
	}
	return min(width, 2*usual), high
}
