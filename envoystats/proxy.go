package envoystats

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"github.com/meshpulse/meshpulse/aggregator"
)

// What Envoy counts by itself is under names of its own
// (cluster.inbound|9898||;.upstream_rq_active), of which the bootstrap's tag rules make labels
// where they are sent as labels, and in Prometheus:
// envoy_cluster_upstream_rq_active{cluster_name="inbound|9898||"}.

// tagRule is one of Istio's bootstrap (stats_config.stats_tags of
// istio/istio tools/packaging/common/envoy_bootstrap.json): the first group is cut out of the name,
// the second is the tag's value, the first where there is none.
type tagRule struct {
	tag   string
	regex *regexp.Regexp
}

// bootstrapTags are Istio's rules. Go has no lookahead, but the one that is used looks at a dot.
func bootstrapTags() []tagRule {
	rule := func(tag, regex string) tagRule { return tagRule{tag, regexp.MustCompile(regex)} }
	return []tagRule{
		rule("cluster_name", `^cluster(\.(.+);)`),
		rule("http_conn_manager_prefix", `^http\.(((?:[_.[:digit:]\w]*|[_\[\]aAbBcCdDeEfF[:digit:]\w\:]*));\.)`),
		rule("thread_name", `^server(\.(.+))\.watchdog`),
		rule("tcp_prefix", `^tcp\.((.*?)\.)\w+?$`),
		rule("response_code", `_rq(_(\d{3}))$`),
		rule("response_code_class", `_rq(_(\dxx))$`),
		rule("http_conn_manager_listener_prefix", `^listener\..*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`),
		rule("listener_address", `^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`),
		rule("mongo_prefix", `^mongo\.(.+?)\.(collection|cmd|cx_|op_|delays_|decoding_)(.*?)$`),
		rule("cache", `(cache\.(.+?)\.)`),
		rule("component", `(component\.(.+?)\.)`),
		rule("tag", `(tag\.(.+?);\.)`),
		rule("wasm_filter", `(wasm_filter\.(.+?)\.)`),
		rule("authz_enforce_result", `rbac(\.(allowed|denied))`),
		rule("authz_dry_run_action", `(\.istio_dry_run_(allow|deny)_)`),
		rule("authz_dry_run_result", `(\.shadow_(allowed|denied))`),
	}
}

// cutTags cuts the tags out of a name, as Envoy does (source/common/stats/tag_producer_impl.cc):
// each rule looks at the whole name, and what any of them cuts is left out.
func cutTags(rules []tagRule, name string) (metric string, labels []aggregator.Label) {
	var cut []bool
	for _, r := range rules {
		at := r.regex.FindStringSubmatchIndex(name)
		if at == nil {
			continue
		}
		if cut == nil {
			cut = make([]bool, len(name))
		}
		for i := at[2]; i < at[3]; i++ {
			cut[i] = true
		}
		value := at[2:4]
		if len(at) > 4 {
			value = at[4:6]
		}
		if value[0] < value[1] {
			labels = append(labels, aggregator.Label{Name: r.tag, Value: name[value[0]:value[1]]})
		}
	}
	if cut == nil {
		return name, nil
	}
	left := make([]byte, 0, len(name))
	for i := range len(name) {
		if !cut[i] {
			left = append(left, name[i])
		}
	}
	return string(left), labels
}

// proxyMetric is a prefix of Config.Keep of Envoy's own metrics, without envoy_.
type proxyMetric string

// keepsProxys says whether a family is one of those of Envoy's own metrics that are kept.
func (s *scan) keepsProxys(name []byte) bool {
	return slices.ContainsFunc(s.rules.proxy, func(p proxyMetric) bool { return p.mayBe(name) })
}

// mayBe says whether a name on the wire may be that of such a metric. A tag may lie behind its
// first part, and ends with a semicolon, or where Istio's rules know none of those with a dot.
func (p proxyMetric) mayBe(name []byte) bool {
	if begins(name, string(p)) {
		return true
	}
	root := bytes.IndexByte(name, '.')
	if root < 0 || len(p) <= root || !begins(name, string(p[:root])+"_") {
		return false
	}
	rest := string(p[root+1:])
	ends := []byte(";.")
	if !bytes.Contains(name, ends) {
		ends = ends[1:]
	}
	for i := root + 1; ; {
		next := bytes.Index(name[i:], ends)
		if next < 0 {
			return false
		}
		if i += next + len(ends); begins(name[i:], rest) {
			return true
		}
	}
}

// begins says whether a name, as sanitize has it, begins so.
func begins(name []byte, prefix string) bool {
	if len(name) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		c := name[i]
		if !fits(rune(c)) {
			c = '_'
		}
		if c != prefix[i] {
			return false
		}
	}
	return true
}

// keptName is what the metrics of a prefix of Config.Keep begin with in Prometheus. Of names on the
// wire that are Envoy's own only the first part is sure.
func keptName(prefix string) string {
	name, istios := strings.CutPrefix(prefix, statPrefix)
	if istios || strings.HasPrefix(name, istioPrefix) || strings.HasPrefix(istioPrefix, name) || strings.HasPrefix(name, aggregator.ProxyPrefix) {
		return name
	}
	root, _, _ := strings.Cut(name, ".")
	return aggregator.ProxyPrefix + sanitize(root)
}
