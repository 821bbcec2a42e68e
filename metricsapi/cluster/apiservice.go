package cluster

import (
	"context"
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// replacedSpec is the annotation in which manifests/install.sh keeps the spec of the adapter from
// which it took an API.
const replacedSpec = "meshpulse.io/replaced-spec"

// APIService is whom an API server asks for an API.
type APIService struct {
	Namespace, Service string
	CABundle           []byte
	// Insecure: the certificate is not checked.
	Insecure bool
	// Taken: it was taken from another adapter, and has not been put back.
	Taken bool
	// Object is what an event is about.
	Object corev1.ObjectReference
}

const apiServices = "apiregistration.k8s.io/v1"

// APIService reads one by its name.
func (a *API) APIService(ctx context.Context, name string) (APIService, error) {
	var read struct {
		metav1.ObjectMeta `json:"metadata"`

		Spec struct {
			Service struct {
				Namespace string `json:"namespace"`
				Name      string `json:"name"`
			} `json:"service"`
			CABundle []byte `json:"caBundle"`
			Insecure bool   `json:"insecureSkipTLSVerify"`
		} `json:"spec"`
	}
	body, err := a.Client.CoreV1().RESTClient().Get().AbsPath("/apis/"+apiServices+"/apiservices/"+name).SetHeader("Accept", "application/json").DoRaw(ctx)
	if err == nil {
		err = json.Unmarshal(body, &read)
	}
	if err != nil {
		return APIService{}, err
	}
	return APIService{
		Namespace: read.Spec.Service.Namespace, Service: read.Spec.Service.Name, CABundle: read.Spec.CABundle, Insecure: read.Spec.Insecure,
		Taken:  read.Annotations[replacedSpec] != "",
		Object: corev1.ObjectReference{APIVersion: apiServices, Kind: "APIService", Name: name, UID: read.UID, ResourceVersion: read.ResourceVersion},
	}, nil
}

// WarnOf tells of a problem with an object that is no HPA, once for as long as the API server keeps
// the event. That of one without a namespace is in the default one.
func (e *Events) WarnOf(object corev1.ObjectReference, p hpas.Problem) {
	e.warnings.Add(newEvent(object, corev1.EventTypeWarning, p, e.now()))
}
