package hpas

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/meshpulse/meshpulse/aggregator"
)

// The named metrics that are gauges of the sidecars' own. A selector gives them Istio's labels as
// it gives them to the others, as far as a sidecar's own metrics tell them: of the pods themselves,
// and of the Service that is called.
const (
	requestsActive  = "istio-requests-active"
	requestsPending = "istio-requests-pending"

	serviceNameKey = "destination_service_name"
)

// proxyExpression is the PromQL of such a metric under a selector. Those that are active are the
// namespace's pods', those that are pending are of calls to its Services.
func proxyExpression(name, template, namespace string, selector labels.Selector) (expr string, err error) {
	p := proxySelector{name: name, namespace: namespace, end: "destination_"}
	if name == requestsActive {
		p.matchers = []string{`http_conn_manager_prefix=~"inbound_.*"`, labelNamespaceOf + "=" + strconv.Quote(namespace)}
	} else {
		p.end = "source_"
	}
	requirements, _ := selector.Requirements()
	for _, r := range sortedRequirements(requirements) {
		if err := p.add(r); err != nil {
			return "", err
		}
	}
	if name == requestsPending && p.services == 0 {
		return "", fmt.Errorf("callers know Services, and no workloads: give the selector a %s", serviceNameKey)
	}
	return strings.ReplaceAll(template, "{M", "{"+strings.Join(p.matchers, ",")), nil
}

const labelNamespaceOf = "namespace"

// proxySelector is what a selector becomes.
type proxySelector struct {
	name, namespace, end string
	matchers             []string
	services             int // requirements of the Service
}

func (p *proxySelector) add(r labels.Requirement) error {
	value, one := onlyValue(r)
	switch key := r.Key(); {
	case key == windowKey:
		return fmt.Errorf("selector %s: %s is what there is now, and looks at no window", r.String(), p.name)
	case key == reporterKey && one && value+"_" == p.end:
		return nil
	case key == reporterKey:
		return fmt.Errorf("selector %s: %s is told by %s sidecars alone", r.String(), p.name, strings.TrimSuffix(p.end, "_"))
	case key == namespaceKey && r.Matches(labels.Set{namespaceKey: p.namespace}):
		return nil
	case key == namespaceKey:
		return fmt.Errorf("selector %s: the metric is limited to the namespace of the request, %s", r.String(), p.namespace)
	case key == serviceNameKey && p.name == requestsPending && one:
		p.services++
		cluster := "outbound[|][0-9]+[|][^|]*[|]" + regexp.QuoteMeta(value) + "[.]" + regexp.QuoteMeta(p.namespace) + "[.]svc[.].*"
		p.matchers = append(p.matchers, "cluster_name=~"+strconv.Quote(cluster))
		return nil
	default:
		return p.addOwn(r)
	}
}

// addOwn adds what is asked for of the pods themselves.
func (p *proxySelector) addOwn(r labels.Requirement) error {
	label := ""
	for _, id := range aggregator.IdentityLabels {
		switch {
		case r.Key() != p.end+id.Name:
		case id.Own != "":
			label = id.Own
		default:
			label = labelNamespaceOf
		}
	}
	if r.Key() == "pod" || r.Key() == labelNamespaceOf {
		label = r.Key()
	}
	if label == "" {
		return fmt.Errorf("selector %s: a sidecar's own metrics do not tell %s. %s takes %s", r.String(), r.Key(), p.name, p.takes())
	}
	own, err := labels.NewRequirement(label, r.Operator(), slices.Sorted(slices.Values(r.ValuesUnsorted())))
	if err != nil {
		return fmt.Errorf("selector %s: %w", r.String(), err)
	}
	m, err := namedMatcher(*own)
	p.matchers = append(p.matchers, m)
	return err
}

// takes are the labels that a selector may have.
func (p *proxySelector) takes() string {
	var keys []string
	if p.name == requestsPending {
		keys = append(keys, serviceNameKey)
	}
	for _, id := range aggregator.IdentityLabels {
		keys = append(keys, p.end+id.Name)
	}
	return strings.Join(append(keys, "pod"), ", ")
}
