package envoystats

import (
	"errors"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/aggregator"
)

// all returns Istio's labels of a request, with some of them set otherwise.
func all(set ...string) map[string]string {
	labels := map[string]string{
		"reporter": "destination", "source_workload": "web", "source_canonical_service": "web", "source_canonical_revision": "latest",
		"source_workload_namespace": "test", "source_principal": "spiffe://cluster.local/ns/test/sa/web", "source_app": "web",
		"source_version": "v1.2", "source_cluster": "c.1", "destination_workload": "podinfo", "destination_workload_namespace": "test",
		"destination_principal": "spiffe://cluster.local/ns/test/sa/podinfo", "destination_app": "podinfo", "destination_version": "6.9.2",
		"destination_service": "podinfo.test.svc.cluster.local", "destination_canonical_service": "podinfo",
		"destination_canonical_revision": "6.9.2", "destination_service_name": "podinfo", "destination_service_namespace": "test",
		"destination_cluster": "Kubernetes", "request_protocol": "http", "response_code": "200", "grpc_response_status": "0",
		"response_flags": "-", "connection_security_policy": "mutual_tls",
	}
	return with(labels, set...)
}

func with(labels map[string]string, set ...string) map[string]string {
	for i := 0; i+1 < len(set); i += 2 {
		labels[set[i]] = set[i+1]
	}
	return labels
}

// join makes a family name as Istio's stock wiring does. An empty value vanishes with its dot, or
// leaves an empty token.
func join(metric string, labels map[string]string, keys []string, emptyTokens bool) string {
	name := metric
	for _, key := range keys {
		value, ok := labels[key]
		if !ok {
			continue
		}
		name += "." + key
		if value != "" || emptyTokens {
			name += "." + value
		}
	}
	return name
}

var httpKeys = slices.Concat(headKeys, httpTail)

func asMap(t testing.TB, labels []aggregator.Label) map[string]string {
	m := map[string]string{}
	for _, l := range labels {
		if _, twice := m[l.Name]; twice {
			t.Errorf("label %s comes twice", l.Name)
		}
		m[l.Name] = l.Value
	}
	return m
}

// present is what is left of labels once they are labels: those without a value are none.
func present(labels map[string]string) map[string]string {
	left := map[string]string{}
	for k, v := range labels {
		if v != "" {
			left[k] = v
		}
	}
	return left
}

func TestLabelsOfJoinedNames(t *testing.T) {
	without := func(labels map[string]string, keys ...string) map[string]string {
		for _, k := range keys {
			delete(labels, k)
		}
		return labels
	}
	keysWith := func(custom ...string) []string { return slices.Concat(httpKeys, custom) }
	const requests = "istio_requests_total"
	for _, test := range []struct {
		name   string
		custom []string
		metric string
		labels map[string]string
		keys   []string
		want   map[string]string // nil: labels
	}{
		{name: "all of Istio's", metric: requests, labels: all(), keys: httpKeys},
		{name: "empty values", metric: requests, labels: all("grpc_response_status", "", "source_version", "", "source_cluster", "", "reporter", ""), keys: httpKeys},
		{name: "an empty last value", metric: requests, labels: all("connection_security_policy", ""), keys: httpKeys},
		{name: "removed tags", metric: requests, labels: without(all(), "reporter", "source_principal", "destination_service", "grpc_response_status", "connection_security_policy"), keys: httpKeys},
		{name: "all but one removed", metric: requests, labels: map[string]string{"response_code": "503"}, keys: httpKeys},
		{name: "TCP", metric: "istio_tcp_sent_bytes_total", labels: without(all(), "response_code", "grpc_response_status"), keys: slices.Concat(headKeys, tcpTail)},
		{
			name: "gRPC messages, a host that names a key of requests", metric: "istio_request_messages_total",
			labels: without(all("destination_service", "a.response_code.5.connection_security_policy.b"), httpTail...), keys: headKeys,
		},
		{name: "custom tags", custom: []string{"zone", "host"}, metric: requests, labels: all("host", "a.example.com", "zone", "z1"), keys: keysWith("host", "zone")},
		{
			name: "custom tags of gRPC messages", custom: []string{"host"}, metric: "istio_response_messages_total",
			labels: without(all("host", "a.example.com"), httpTail...), keys: slices.Concat(headKeys, []string{"host"}),
		},
		{
			name: "a custom tag that a value names", custom: []string{"host"}, metric: requests,
			labels: all("host", "a", "source_workload", "x.host.y"), keys: keysWith("host"),
		},
		{
			name: "custom tags that the sink was not told of", metric: requests, labels: all("host", "a.example.com"), keys: keysWith("host"),
			want: all("custom_tags", "host.a.example.com"),
		},
		{
			name: "nothing but custom tags that the sink was not told of", metric: requests, labels: map[string]string{"host": "a"}, keys: []string{"host"},
			want: map[string]string{"custom_tags": "host.a"},
		},
		{
			name: "a custom tag with a name that PromQL does not take", custom: []string{"x-tag"}, metric: requests,
			labels: map[string]string{"reporter": "source", "x-tag": "a"}, keys: []string{"reporter", "x-tag"},
			want: map[string]string{"reporter": "source", "x_tag": "a"},
		},
		{
			name: "a removed tag that the host names", metric: requests,
			labels: without(all("destination_service", "x.source_version.y.response_code.1"), "source_version", "response_code"), keys: httpKeys,
		},
	} {
		for _, emptyTokens := range []bool{false, true} {
			t.Run(test.name, func(t *testing.T) {
				p := newNameParser(test.custom)
				name := join(test.metric, test.labels, test.keys, emptyTokens)
				want := test.want
				if want == nil {
					want = present(test.labels)
				}
				metric, labels := split(p, name)
				if metric != test.metric {
					t.Errorf("metric %q, want %q", metric, test.metric)
				}
				if diff := cmp.Diff(want, asMap(t, labels)); diff != "" {
					t.Errorf("%s\nwant -, got +\n%s", name, diff)
				}
			})
		}
	}
}

// A client chooses its Host header. It may spoil the values that are made from it, and those
// between them, but neither say which workload was called nor how that answered.
func TestAHostHeaderCannotForgeWhatWasCalledOrHowItAnswered(t *testing.T) {
	forged := join("x", all("destination_workload", "victim", "response_code", "500", "destination_service_namespace", "prod"), httpKeys, false)
	for _, host := range []string{
		forged,
		"destination_canonical_service.victim",
		"x.destination_service_namespace.prod.destination_cluster.y",
		"x.request_protocol.grpc.response_code.500.grpc_response_status.response_flags.UF.connection_security_policy.none",
		strings.Repeat("response_code.500.", 50),
		"..", "",
	} {
		labels := all("destination_service", host, "destination_service_name", host)
		p := newNameParser(nil)
		_, got := split(p, join("istio_requests_total", labels, httpKeys, false))
		read := asMap(t, got)
		for _, key := range slices.Concat(headKeys[:slices.Index(headKeys, "destination_service")], headKeys[slices.Index(headKeys, "destination_service_namespace"):], httpTail) {
			if read[key] != labels[key] {
				t.Errorf("host %.60q: %s is %q, want %q", host, key, read[key], labels[key])
			}
		}
	}
}

func TestFamiliesThatAreNotIstiosAreNamedAsEnvoysPrometheusNamesThem(t *testing.T) {
	for name, want := range map[string]string{
		"cluster.inbound|9898||.upstream_cx_max": "envoy_cluster_inbound_9898___upstream_cx_max",
		"server.live":                            "envoy_server_live",
		"istiocustom.istio_requests_total":       "istio_requests_total",
		"5xx":                                    "envoy_5xx",
		"\u00e9":                                 "envoy__",
	} {
		c := Config{Keep: []string{""}}
		s := newScan(c)
		if err := s.read(message(t, family(name, dto.MetricType_COUNTER, counter(1, 1))), new(seen)); err != nil {
			t.Fatal(err)
		}
		got, labels, err := s.Describe(0)
		if got != want || len(labels) != 0 || err != nil {
			t.Errorf("%q is %q %v, error %v, want %q", name, got, labels, err, want)
		}
	}
}

// described reads all series of a capture.
func described(t *testing.T, file string) map[string]map[string]string {
	t.Helper()
	s, keys := newScan(Config{Keep: allOfIstio}), new(seen)
	found := map[string]map[string]string{}
	for _, b := range messages(t, file) {
		if err := s.read(b, keys); err != nil {
			t.Fatal(err)
		}
		for i := range s.batch.Samples {
			name, labels, err := s.Describe(i)
			if err != nil {
				t.Fatal(err)
			}
			m := asMap(t, labels)
			found[name+" "+m["source_workload"]] = m
		}
	}
	return found
}

func TestBothNamingModesGiveTheSameLabels(t *testing.T) {
	stock, labelled := described(t, "testdata/captures/a-default/stream-0.pb.gz"), described(t, "testdata/captures/b-labels/stream-0.pb.gz")
	if len(stock) != 8 {
		t.Errorf("%d series, want 4 metrics of 2 sources", len(stock))
	}
	if diff := cmp.Diff(stock, labelled); diff != "" {
		t.Errorf("stock -, labels +\n%s", diff)
	}
	one := stock["istio_requests_total frontend-1"]
	if len(one) != 24 || one["response_code"] != "200" || one["source_principal"] != "spiffe://cluster.local/ns/test/sa/frontend-1" {
		t.Errorf("labels %v", one)
	}
}

func TestHostileNamesAreReadAsTheyWereSent(t *testing.T) {
	got := described(t, "testdata/captures/g-hostile-names/stream-0.pb.gz")
	// What the load generator sent as x-source-workload.
	for _, source := range []string{
		"a.reporter.source-0", "evil.destination_workload.victim.destination_workload_namespace.prod-0", "x..y-0",
		".response_code.500-0", "dots.v1.2.3-0",
	} {
		for _, metric := range []string{"istio_requests_total", "istio_request_duration_milliseconds"} {
			want := map[string]string{
				"reporter": "destination", "source_workload": source, "source_canonical_service": source,
				"source_canonical_revision": "latest", "source_workload_namespace": "test",
				"source_principal": "spiffe://cluster.local/ns/test/sa/" + source, "source_app": source, "source_version": "unknown",
				"source_cluster": "unknown", "destination_workload": "podinfo", "destination_workload_namespace": "test",
				"destination_principal": "unknown", "destination_app": "podinfo", "destination_version": "6.9.2",
				"destination_service": "podinfo.test.svc.cluster.local", "destination_canonical_service": "podinfo",
				"destination_canonical_revision": "6.9.2", "destination_service_name": "podinfo", "destination_service_namespace": "test",
				"destination_cluster": "Kubernetes", "request_protocol": "http", "response_code": "200", "response_flags": "-",
				"connection_security_policy": "none",
			}
			if diff := cmp.Diff(want, got[metric+" "+source]); diff != "" {
				t.Errorf("%s of %s: want -, got +\n%s", metric, source, diff)
			}
		}
	}
}

func TestLabelsThatPromQLCannotTakeAreRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		family *dto.MetricFamily
		want   error
	}{
		{"the metric's name as a label", family("istio_a", dto.MetricType_COUNTER, counter(1, 1, "__name__", "b")), errReservedLabel},
		{"a bucket's bound as a label", family("istio_a", dto.MetricType_HISTOGRAM, withLabels(histogram(1, 1, 1), "le", "b")), errReservedLabel},
		{"no label name", family("istio_a", dto.MetricType_COUNTER, counter(1, 1, "", "b")), errReservedLabel},
		{"a label twice", family("istio_a", dto.MetricType_COUNTER, counter(1, 1, "a.b", "b", "a_b", "c")), errTwice},
		{"no family name", family("", dto.MetricType_COUNTER, counter(1, 1)), errNoName},
		{"a counter may have a label le", family("istio_a", dto.MetricType_COUNTER, counter(1, 1, "le", "b")), nil},
	} {
		s := newScan(Config{Keep: []string{""}})
		if err := s.read(message(t, test.family), new(seen)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Describe(0); !errors.Is(err, test.want) {
			t.Errorf("%s: error %v, want %v", test.name, err, test.want)
		}
	}
}

func withLabels(m *dto.Metric, labels ...string) *dto.Metric {
	m.Label = counter(0, 0, labels...).Label
	return m
}

// FuzzNames joins labels into a name and reads them back. One bit of removed and of empty for each
// key says that the tag was removed, or has no value; values are cut from text.
func FuzzNames(f *testing.F) {
	f.Add("web\npodinfo.test.svc\n\n..\nspiffe://a/b.c", uint32(0), uint32(0), false, false)
	f.Add("reporter\nx.source_workload.y", uint32(1), uint32(1<<22), true, true)
	f.Add("a\nb\nc", uint32(1<<31-1-1<<7), uint32(6), true, false)
	f.Fuzz(func(t *testing.T, text string, removed, empty uint32, emptyTokens, custom bool) {
		if len(text) > 8<<10 { // Config.MaxNameBytes
			return
		}
		keys, tags := httpKeys, []string(nil)
		if custom {
			tags = []string{"zz_tag", "host"}
			keys = slices.Concat(httpKeys, []string{"host", "zz_tag"})
		}
		values := strings.Split(text, "\n")
		labels := map[string]string{}
		for i, key := range keys {
			if removed&(1<<i) != 0 {
				continue
			}
			labels[key] = values[i%len(values)]
			if empty&(1<<i) != 0 {
				labels[key] = ""
			}
			if key == securityPolicy {
				labels[key] = strings.ReplaceAll(labels[key], ".", "_") // more tokens may be custom tags
			}
		}
		p := newNameParser(tags)
		name := join("istio_requests_total", labels, keys, emptyTokens)
		if len(name) > 8<<10 {
			return
		}
		_, got := split(p, name)
		read := asMap(t, got)
		holdsKey := func(value string) bool {
			return slices.ContainsFunc(strings.Split(value, "."), func(token string) bool { return slices.Contains(keys, token) })
		}
		for _, value := range labels {
			if holdsKey(value) { // nothing tells it from the key, but no more may be lost than a value
				for name := range read {
					if !slices.Contains(keys, name) && name != unsplitTags {
						t.Fatalf("label %q of %q", name, labels)
					}
				}
				return
			}
		}
		if diff := cmp.Diff(present(labels), read); diff != "" {
			t.Fatalf("want -, got +\n%s", diff)
		}
	})
}

// podinfo is the pod whose labels all has.
var podinfo = own{
	Namespace: "test", Workload: "podinfo", App: "podinfo", Version: "6.9.2", CanonicalService: "podinfo", CanonicalRevision: "6.9.2",
}

// What whoever calls podinfo may choose, against the workload that the request is counted for. By
// the name alone the first two are the victim's, and the third nobody's.
func TestACallerCannotMakeAnotherWorkloadsSeries(t *testing.T) {
	upTo := func(last string) string {
		forged := all("destination_workload", "victim", "destination_workload_namespace", "prod", "destination_app", "victim", "destination_canonical_service", "victim")
		return strings.TrimPrefix(join("", forged, httpKeys[1:slices.Index(httpKeys, last)+1], false), ".source_workload.")
	}
	for name, labels := range map[string]map[string]string{
		"metadata exchange, all keys up to the workload's": all("source_workload", upTo("destination_principal")),
		"metadata exchange, all keys":                      all("source_workload", upTo("connection_security_policy")),
		"the Host header":                                  all("destination_service", "x.destination_canonical_service.victim", "destination_service_name", "x"),
	} {
		_, got := podinfo.split(newNameParser(nil), join("istio_requests_total", labels, httpKeys, false))
		read := asMap(t, got)
		for _, key := range []string{"reporter", "destination_workload", "destination_workload_namespace", "destination_canonical_service", "destination_app"} {
			if want := all()[key]; read[key] != want {
				t.Errorf("%s: %s is %q, want %q", name, key, read[key], want)
			}
		}
		if read[misreadTags] == "" {
			t.Errorf("%s: nothing keeps the series apart from podinfo's own: %q", name, read)
		}
	}
	// A tag that a Telemetry resource took out, and a caller brings in again.
	for _, removed := range []string{"destination_workload", "destination_workload_namespace", "destination_canonical_service"} {
		labels := all("source_workload", "x."+removed+".victim", "source_version", "y."+removed+".victim", "destination_service", "z."+removed+".victim")
		delete(labels, removed)
		_, got := podinfo.split(newNameParser(nil), join("istio_requests_total", labels, httpKeys, false))
		if got := asMap(t, got)[removed]; got != "" && got != all()[removed] {
			t.Errorf("%s was taken out and is %q", removed, got)
		}
	}
	// What nobody tampered with stays as it is: a source names others, an override of a version is
	// one.
	for _, labels := range []map[string]string{
		all(), all("reporter", "source", "destination_workload", "other"), all("destination_version", "canary"),
	} {
		_, got := podinfo.split(newNameParser(nil), join("istio_requests_total", labels, httpKeys, false))
		if diff := cmp.Diff(labels, asMap(t, got)); diff != "" {
			t.Errorf("want -, got +\n%s", diff)
		}
	}
}

// Pods that know other things of themselves read the same bytes as other labels, so what one has
// read must not be another's.
func TestOnlyPodsThatKnowTheSameShareWhatTheyRead(t *testing.T) {
	rules := Config{}.withDefaults().rules()
	spaces := map[uint64]own{}
	for _, change := range []func(*own){
		func(*own) {},
		func(o *own) { o.Namespace = "prod" },
		func(o *own) { o.Workload = "victim" },
		func(o *own) { o.App, o.Version = "podinfo6", ".9.2" },
		func(o *own) { o.Version = "" },
		func(o *own) { o.CanonicalService = "victim" },
		func(o *own) { o.CanonicalRevision = "latest" },
	} {
		o := podinfo
		change(&o)
		space := o.space(rules)
		if other, twice := spaces[space]; twice || space == 0 {
			t.Errorf("%+v and %+v share %d", o, other, space)
		}
		spaces[space] = o
	}
	again := podinfo
	again.Name, again.Peer = "podinfo-2", "spiffe://x"
	if again.space(rules) != podinfo.space(rules) {
		t.Error("two pods of a workload do not share")
	}
}

// FuzzACallersValues lets all values that a pod's callers have a say in be anything, some of the
// tags taken out, and holds that what the pod reports as a destination is counted for no other
// workload, namespace or canonical service.
func FuzzACallersValues(f *testing.F) {
	f.Add("x.destination_workload.victim.destination_workload_namespace.prod\nreporter.source", uint32(0), false)
	f.Add("x.destination_canonical_service.victim\nreporter.source.destination_workload.a", uint32(1<<9|1<<15), true)
	f.Add(strings.Join(httpKeys, ".v."), uint32(0), false)
	f.Fuzz(func(t *testing.T, text string, removed uint32, emptyTokens bool) {
		if len(text) > 8<<10 { // Config.MaxNameBytes
			return
		}
		values := strings.Split(text, "\n")
		labels := map[string]string{}
		for i, key := range httpKeys {
			value, _ := podinfo.value(key)
			switch {
			case key == "reporter":
				labels[key] = "destination"
			case removed&(1<<i) != 0:
			case value != "":
				labels[key] = value
			default:
				labels[key] = values[i%len(values)]
			}
		}
		name := join("istio_requests_total", labels, httpKeys, emptyTokens)
		if len(name) > 8<<10 {
			return
		}
		_, got := podinfo.split(newNameParser(nil), name)
		read := asMap(t, got)
		if read["reporter"] != "destination" {
			t.Fatalf("%s: reporter %q", name, read["reporter"])
		}
		for _, key := range []string{"destination_workload", "destination_workload_namespace", "destination_canonical_service"} {
			if own, _ := podinfo.value(key); read[key] != own && read[key] != "" {
				t.Fatalf("%s: %s is %q", name, key, read[key])
			}
		}
	})
}

// split reads a joined name as the scan of one of the pod's messages does.
func (o own) split(p nameParser, family string) (string, []aggregator.Label) {
	s := &scan{rules: &scanRules{names: p}, own: &o}
	return s.split(family)
}

// split reads a joined name as a scan does.
func split(p nameParser, family string) (string, []aggregator.Label) {
	s := &scan{rules: &scanRules{names: p}}
	return s.split(family)
}
