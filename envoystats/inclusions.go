package envoystats

import (
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"
)

// maxInclusions bounds what is looked at of a node's inclusions, in bytes.
const maxInclusions = 4 << 10

// sends returns whether a node's inclusions let each of two metrics through (aggregator.Pod): those
// of the pod's annotations, each in the place of the mesh's of its kind (istio/istio
// pkg/bootstrap/config.go, getStatsOptions).
func sends(meta map[string]*structpb.Value) (active, pending bool) {
	notes := meta["ANNOTATIONS"].GetStructValue().GetFields()
	matcher := meta["PROXY_CONFIG"].GetStructValue().GetFields()["proxyStatsMatcher"].GetStructValue().GetFields()
	listed := func(annotation, field string) (patterns []string) {
		if note := notes["sidecar.istio.io/"+annotation].GetStringValue(); note != "" {
			return strings.Split(note[:min(len(note), maxInclusions)], ",")
		}
		size := 0
		for _, v := range matcher[field].GetListValue().GetValues() {
			if size += len(v.GetStringValue()); size <= maxInclusions && v.GetStringValue() != "" {
				patterns = append(patterns, v.GetStringValue())
			}
		}
		return patterns
	}
	prefixes, suffixes := listed("statsInclusionPrefixes", "inclusionPrefixes"), listed("statsInclusionSuffixes", "inclusionSuffixes")
	regexes := listed("statsInclusionRegexps", "inclusionRegexps")
	lets := func(name string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return p != "" && strings.HasPrefix(name, p) }) ||
			slices.ContainsFunc(suffixes, func(s string) bool { return s != "" && strings.HasSuffix(name, s) }) ||
			slices.ContainsFunc(regexes, func(r string) bool {
				regex, err := regexp.Compile("^(?:" + r + ")$")
				return err == nil && regex.MatchString(name)
			})
	}
	either := func(before, behind string) bool { return lets(before+";"+behind) || lets(before+behind) } // as Istio wrote it before
	return either("http.inbound_0.0.0.0_8080", ".downstream_rq_active"), either("cluster.outbound|80||a.b.svc.cluster.local", ".upstream_rq_pending_active")
}
