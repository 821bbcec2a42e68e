package fallback

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Address is a Service of the cluster and one of its ports.
type Address struct {
	Namespace, Service string
	Port               int
}

// httpsPort is the Service's where none is given.
const httpsPort = 443

// ParseAddress reads NAMESPACE/SERVICE[:PORT]; the port is 443 by default. The error says what it
// is not.
func ParseAddress(text string) (Address, error) {
	wrong := fmt.Errorf("%q is not NAMESPACE/SERVICE[:PORT], such as keda/keda-operator-metrics-apiserver", text)
	namespace, service, ok := strings.Cut(text, "/")
	if !ok {
		return Address{}, wrong
	}
	a := Address{namespace, service, httpsPort}
	if name, port, ok := strings.Cut(service, ":"); ok {
		n, err := strconv.Atoi(port)
		if err != nil || len(validation.IsValidPortNum(n)) > 0 {
			return Address{}, wrong
		}
		a.Service, a.Port = name, n
	}
	if len(validation.IsDNS1123Label(a.Namespace)) > 0 || len(validation.IsDNS1035Label(a.Service)) > 0 {
		return Address{}, wrong
	}
	return a, nil
}

// String is the Service as people write it.
func (a Address) String() string { return a.Namespace + "/" + a.Service }

// Name is the Service's in the cluster's DNS, which its certificate has to be for.
func (a Address) Name() string { return a.Service + "." + a.Namespace + ".svc" }

func (a Address) hostPort() string { return net.JoinHostPort(a.Name(), strconv.Itoa(a.Port)) }
