package chaos

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
)

// Rights that a fault has taken come back although the API server is away when the fault ends.
func TestRightsAreGivenBackOnceTheAPIServerIsThere(t *testing.T) {
	asked := 0
	role := rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "meshpulse"}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked <= 2 {
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
		if r.Method == http.MethodPut {
			if err := json.NewDecoder(r.Body).Decode(&role); err != nil {
				t.Error(err)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(role); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	config := &rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	h := &Hands{system: System{Cluster: &cluster.Cluster{Client: client}}}
	rules := []rbacv1.PolicyRule{{Verbs: []string{"list"}, Resources: []string{"pods"}}}
	if err := h.giveBack(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	if len(role.Rules) != 1 || len(role.Rules[0].Verbs) != 1 || role.Rules[0].Verbs[0] != "list" {
		t.Errorf("the role has %v, want its rights back", role.Rules)
	}
}
