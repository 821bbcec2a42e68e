package metricsapi

import (
	"encoding/json"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// reachPath is a group of meshpulse's own without any resource: by an APIService for it
// manifests/install.sh sees whether the API server reaches the pod, before HPAs depend on it.
const reachPath = "/apis/meshpulse.io/v1alpha1"

func serveReach(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(metav1.APIResourceList{ // a caller that has gone needs no answer
		TypeMeta:     metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"},
		GroupVersion: "meshpulse.io/v1alpha1", APIResources: []metav1.APIResource{},
	})
}
