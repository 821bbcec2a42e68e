package envoystats

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/meshpulse/meshpulse/aggregator"
)

// headKeys and the tails are Istio's tags in the order in which its stats filter adds them
// (istio/proxy and Envoy's istio_stats filter). Requests are counted with the HTTP tail,
// connections with the TCP tail, gRPC messages with none.
var headKeys = []string{
	"reporter",
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster",
	"destination_workload", "destination_workload_namespace", "destination_principal", "destination_app",
	"destination_version", "destination_service", "destination_canonical_service", "destination_canonical_revision",
	"destination_service_name", "destination_service_namespace", "destination_cluster",
}

var (
	httpTail = []string{"request_protocol", "response_code", "grpc_response_status", "response_flags", securityPolicy}
	tcpTail  = []string{"request_protocol", "response_flags", securityPolicy}
)

const (
	securityPolicy = "connection_security_policy"
	// afterHost is the first of the keys that are read from the right: all keys behind the last
	// value that a client chooses with its Host header (destination_service and
	// destination_service_name where no cluster is known).
	afterHost = "destination_service_namespace"
	// unsplitTags holds what follows Istio's own tags in a joined name where Config.CustomTags does
	// not say how to split it. It keeps such series apart, so that sums stay right.
	unsplitTags = "custom_tags"
)

var (
	errNoName        = errors.New("family has no name")
	errReservedLabel = errors.New("label name is reserved")
	errTwice         = errors.New("label comes twice")
)

// Describe implements [aggregator.Describer] for the message that was read last.
func (s *scan) Describe(i int) (name string, labels []aggregator.Label, err error) {
	o := s.origins[i]
	if o.group > 0 {
		g := s.groups[o.group-1]
		return g.name, g.labels, nil
	}
	family, istios := strings.CutPrefix(string(s.msg[o.name.from:o.name.to]), statPrefix)
	istios = istios || strings.HasPrefix(family, istioPrefix)
	labelled := false
	eachLabel(s.msg[:o.metric.to], int(o.metric.from), func(name, value []byte) {
		labelled = true
		if len(value) > 0 { // as in Prometheus, an empty label is no label
			labels = append(labels, aggregator.Label{Name: sanitize(string(name)), Value: string(value)})
		}
	})
	switch {
	case !istios && !labelled:
		family, labels = cutTags(s.rules.tags, family)
	case !istios:
	case labelled:
		labels = s.own.correct(labels, false)
	default:
		family, labels = s.split(family)
	}
	if family == "" {
		return "", nil, errNoName
	}
	if !istios || family == aggregator.ProxyBuild {
		labels = s.own.identify(labels)
	}
	if !istios {
		family = aggregator.ProxyPrefix + family
	}
	if err := checkLabels(labels, o.kind); err != nil {
		return "", nil, fmt.Errorf("%s: %w", family, err)
	}
	return sanitize(family), labels, nil
}

// joinedTags are the tags of a joined name and how they are read.
type joinedTags struct {
	order *keyOrder
	tags  string
}

// split returns the metric's name and labels of a family whose tags are not sent as labels; one
// that is not Istio's has none. It remembers the tags that it has read of the message: a label set
// has four metrics with the same.
func (s *scan) split(family string) (metric string, labels []aggregator.Label) {
	metric, joined := s.rules.names.cut(family)
	if joined.order == nil {
		return metric, nil
	}
	labels, known := s.tagged[joined]
	if !known {
		if s.tagged == nil {
			s.tagged = map[joinedTags][]aggregator.Label{}
		}
		tokens := strings.Split(joined.tags, ".")
		labels = s.own.correct(joined.order.labels(tokens), joined.order.repeats(tokens))
		s.tagged[joined] = labels
	}
	return metric, labels
}

// checkLabels refuses label names that mean something else to PromQL, and names that are the same
// once sanitized.
func checkLabels(labels []aggregator.Label, kind aggregator.Kind) error {
	for i, l := range labels {
		if l.Name == "__name__" || l.Name == "" || l.Name == "le" && (kind == aggregator.Histogram || kind == aggregator.Summary) {
			return fmt.Errorf("%w: %q", errReservedLabel, l.Name)
		}
		for _, other := range labels[:i] {
			if l.Name == other.Name {
				return fmt.Errorf("%w: %q", errTwice, l.Name)
			}
		}
	}
	return nil
}

// sanitize makes a name one of [a-zA-Z_][a-zA-Z0-9_]*, as Envoy's own Prometheus endpoint does
// (source/server/admin/prometheus_stats.cc, sanitizeName): what does not fit becomes an underscore.
func sanitize(name string) string {
	if strings.IndexFunc(name, func(r rune) bool { return !fits(r) }) >= 0 {
		name = strings.Map(func(r rune) rune {
			if fits(r) {
				return r
			}
			return '_'
		}, name)
	}
	if name != "" && '0' <= name[0] && name[0] <= '9' {
		name = "_" + name
	}
	return name
}

func fits(r rune) bool {
	return r == '_' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}

// nameParser recovers labels from names that hold them all, joined with dots:
//
//	istio_requests_total.reporter.destination.….connection_security_policy.mutual_tls
//
// Values may hold dots and even keys, and nothing is escaped, so the name alone does not always say
// where a value ends. Keys come in a known order, each at most once, so the reading that finds most
// keys in their order is taken. Where several find as many, a value ends at the first token that is
// the next key, except behind the Host header's values: there keys are read from the right, or a
// client could choose the response code that it is counted under. What a destination's name says of
// the destination is then held against the node, which knows it (own.go). An empty value either
// vanished with its dot or left an empty token; both are read as no label.
type nameParser struct {
	http, tcp, messages, build keyOrder
	known                      map[string]bool // labels that Istio's own tags become
}

// callers reports whether the callers of a pod choose a label's values: the Host header is in two
// of Istio's tags of what is received, and what Telemetry resources add is made from requests.
func (p *nameParser) callers(label string, inbound bool) bool {
	switch label {
	case "destination_service", "destination_service_name":
		return inbound
	}
	return !p.known[label]
}

func newNameParser(customTags []string) nameParser {
	custom := slices.Clone(customTags)
	slices.Sort(custom) // the order in which the stats filter adds them
	known := map[string]bool{}
	for _, key := range slices.Concat(headKeys, httpTail, tcpTail) {
		known[sanitize(key)] = true
	}
	return nameParser{
		known:    known,
		http:     newKeyOrder(headKeys, httpTail, custom),
		tcp:      newKeyOrder(headKeys, tcpTail, custom),
		messages: newKeyOrder(headKeys, custom),
		build:    newKeyOrder([]string{"component", "tag"}),
	}
}

// cut returns the metric's name and its tags, whose order is nil for a family that is not Istio's.
func (p *nameParser) cut(family string) (metric string, joined joinedTags) {
	metric, tags, ok := strings.Cut(family, ".")
	if !ok || !strings.HasPrefix(metric, "istio_") {
		return family, joinedTags{}
	}
	order := &p.http
	switch {
	case strings.HasPrefix(metric, "istio_tcp_"):
		order = &p.tcp
	case strings.HasSuffix(metric, "_messages_total"):
		order = &p.messages
	case metric == aggregator.ProxyBuild:
		order = &p.build
	}
	return metric, joinedTags{order, tags}
}

// keyOrder is a metric's keys in the order in which they are joined.
type keyOrder struct {
	rank  map[string]int
	right int // ranks from here on are read from the right
}

func newKeyOrder(parts ...[]string) keyOrder {
	o := keyOrder{rank: make(map[string]int)}
	for _, key := range slices.Concat(parts...) {
		if _, twice := o.rank[key]; !twice {
			o.rank[key] = len(o.rank)
		}
	}
	o.right = o.rank[afterHost]
	return o
}

// labels returns the labels of a joined name's tokens. The reporter is one of three words, which no
// value behind it may change: the reading goes on at the key after it.
func (o *keyOrder) labels(tokens []string) []aggregator.Label {
	const reporter = "reporter"
	if len(tokens) < 2 || tokens[0] != reporter || !slices.Contains([]string{"destination", "source", "waypoint"}, tokens[1]) {
		return o.read(tokens)
	}
	labels := []aggregator.Label{{Name: reporter, Value: tokens[1]}}
	if len(tokens) == 2 {
		return labels
	}
	if _, ok := o.rank[tokens[2]]; !ok {
		return o.read(tokens)
	}
	return append(labels, o.read(tokens[2:])...)
}

// read returns the labels of tokens of which the first is a key.
func (o *keyOrder) read(tokens []string) []aggregator.Label {
	if _, ok := o.rank[tokens[0]]; !ok {
		return []aggregator.Label{{Name: unsplitTags, Value: strings.Join(tokens, ".")}}
	}
	// The right part first; then the left part in what is before it.
	marks := o.marks(tokens, len(o.rank))
	right := fromRight(marks, o.right)
	end := len(tokens)
	if len(right) > 0 {
		end = right[0].token
	}
	keys := right
	if end > 0 {
		keys = append(fromLeft(o.marks(tokens[:end], o.right)), right...)
	}

	labels := make([]aggregator.Label, 0, len(keys))
	for i, k := range keys {
		end := len(tokens)
		if i+1 < len(keys) {
			end = keys[i+1].token
		}
		labels = appendLabel(labels, tokens[k.token], tokens[k.token+1:end])
	}
	return labels
}

// appendLabel appends the label of a key with these value tokens, if there is one.
func appendLabel(labels []aggregator.Label, key string, tokens []string) []aggregator.Label {
	if key == securityPolicy && len(tokens) > 1 && slices.Contains([]string{"mutual_tls", "none", "unknown"}, tokens[0]) {
		labels = append(labels, aggregator.Label{Name: unsplitTags, Value: strings.Join(tokens[1:], ".")})
		tokens = tokens[:1]
	}
	value := strings.Join(tokens, ".")
	if value == "" {
		return labels
	}
	return append(labels, aggregator.Label{Name: sanitize(key), Value: value})
}

// mark is a token that is a key on one of the longest readings.
type mark struct {
	token, rank int
	nth         int // it is that reading's nth key
}

// marks returns the keys of rank below limit that are on a longest reading which begins with the
// first token, in the order of tokens.
func (o *keyOrder) marks(tokens []string, limit int) []mark {
	marks := make([]mark, 0, limit)
	before := make([]int, len(o.rank)+1) // before[r]: the most keys of a reading that ends with a rank below r
	longest := 0
	for i, token := range tokens {
		rank, ok := o.rank[token]
		if !ok || rank >= limit || len(marks) > 0 && rank <= marks[0].rank {
			continue
		}
		m := mark{token: i, rank: rank, nth: before[rank] + 1}
		marks = append(marks, m)
		for r := rank + 1; r < len(before) && before[r] < m.nth; r++ {
			before[r] = m.nth
		}
		longest = max(longest, m.nth)
	}
	// Backwards: a mark stays if a longest reading goes on from it.
	next := make([]int, longest+2) // next[n]: the highest rank of an nth key that stays and comes later
	next[longest+1] = limit
	staying := make([]mark, 0, len(marks))
	for _, m := range slices.Backward(marks) {
		if next[m.nth+1] > m.rank {
			next[m.nth] = max(next[m.nth], m.rank)
			staying = append(staying, m)
		}
	}
	slices.Reverse(staying)
	return staying
}

// fromLeft picks the reading with the leftmost keys.
func fromLeft(marks []mark) []mark {
	keys := make([]mark, 0, len(headKeys)+len(httpTail)) // and those of the right
	last := mark{rank: -1}
	for _, m := range marks {
		if m.nth == last.nth+1 && m.rank > last.rank {
			keys = append(keys, m)
			last = m
		}
	}
	return keys
}

// fromRight picks the keys of rank from and above of the reading with the rightmost keys.
func fromRight(marks []mark, from int) []mark {
	keys := make([]mark, 0, len(marks))
	last := mark{}
	for _, m := range slices.Backward(marks) {
		if m.rank >= from && (len(keys) == 0 && isLongest(m, marks) || m.nth == last.nth-1 && m.rank < last.rank) {
			keys = append(keys, m)
			last = m
		}
	}
	slices.Reverse(keys)
	return keys
}

// isLongest says whether the mark ends a longest reading.
func isLongest(m mark, marks []mark) bool {
	return !slices.ContainsFunc(marks, func(other mark) bool { return other.nth > m.nth })
}
