package fleet

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"embed"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// recordings are the first stream of two captures of a stock Envoy 1.40: tags joined in the name,
// and tags as labels.
//
//go:embed testdata
var recordings embed.FS

// What is patched into a message has a fixed width and stands in for these.
const (
	workloadMark = "svc-WWWW"         // destination workload
	podMark      = "svc-WWWW-PPPPPPP" // pod: its number and its generation
	workloadBits = "WWWW"
	podBits      = "PPPPPPP"
	timeMark     = int64(1)<<41 - 1     // a varint of six bytes, as all times from 2005 to 2109 are
	valueMark    = 123456789.0123456789 // in no recording
)

// template is what all sidecars send, encoded once.
type template struct {
	identifier []byte // the first message's identifier field
	workload   []int  // offsets in it of the workload's digits
	pod        []int  // and of the pod's
	traffic    *traffic
	flushes    []flush // a cycle of the traffic
}

// flush is one encoded message and where to patch it.
type flush struct {
	families   []byte
	last       int // up to here: counters and gauges, all that an Envoy sends at SIGTERM
	timestamps []int
	workloads  []int
	counters   []int // where the values of the label sets' request counters are
}

// newTemplate reads the recording and encodes it for the label sets of a traffic.
func newTemplate(requests *traffic, asLabels bool) (*template, error) {
	first, steady, err := readRecording(asLabels)
	if err != nil {
		return nil, err
	}
	t := &template{traffic: requests, flushes: make([]flush, requests.flushes())}
	if err := t.setIdentifier(first); err != nil {
		return nil, err
	}
	for v := range t.flushes {
		if t.flushes[v], err = newFlush(steady, requests, v); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// readRecording returns the first message, with the node, and a later one with traffic.
func readRecording(asLabels bool) (first, steady *metricsv3.StreamMetricsMessage, err error) {
	file := "testdata/names.pb.gz"
	if asLabels {
		file = "testdata/labels.pb.gz"
	}
	b, err := recordings.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	r := bufio.NewReader(z)
	for {
		m := new(metricsv3.StreamMetricsMessage)
		if err := (protodelim.UnmarshalOptions{MaxSize: -1}).UnmarshalFrom(r, m); err != nil {
			return nil, nil, fmt.Errorf("%s: no flush with requests: %w", file, err)
		}
		if first == nil {
			first = m
		}
		for _, f := range m.GetEnvoyMetrics() {
			if f.GetType() == dto.MetricType_SUMMARY && isIstio(f) && f.GetMetric()[0].GetSummary().GetSampleCount() > 0 {
				return first, m, nil
			}
		}
	}
}

func isIstio(f *dto.MetricFamily) bool { return strings.HasPrefix(f.GetName(), "istiocustom.") }

// setIdentifier encodes the recorded identifier for a pod whose name is patched in.
func (t *template) setIdentifier(first *metricsv3.StreamMetricsMessage) error {
	id := proto.Clone(first.GetIdentifier()).(*metricsv3.StreamMetricsMessage_Identifier)
	node := id.GetNode()
	node.Id = "sidecar~127.97.0.1~" + podMark + ".test~test.svc.cluster.local"
	fields := node.GetMetadata().GetFields()
	for key, value := range map[string]string{"NAME": podMark, "WORKLOAD_NAME": workloadMark, "NAMESPACE": "test"} {
		fields[key] = structpb.NewStringValue(value)
	}
	labels := fields["LABELS"].GetStructValue().GetFields()
	for _, key := range []string{"app", "service.istio.io/canonical-name"} {
		labels[key] = structpb.NewStringValue(workloadMark)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&metricsv3.StreamMetricsMessage{Identifier: id})
	if err != nil {
		return fmt.Errorf("identifier: %w", err)
	}
	t.identifier, t.workload, t.pod = b, find(b, workloadBits), find(b, podBits)
	if len(t.pod) != 2 || len(t.workload) != 5 {
		return fmt.Errorf("identifier: pod found %d times, workload %d times", len(t.pod), len(t.workload))
	}
	return nil
}

// flush is the one of a number, counted from 0, of a pod that is so many flushes ahead in the
// cycle.
func (t *template) flush(number, ahead int64) *flush {
	return &t.flushes[(number+ahead)%t.traffic.flushes()]
}

// newFlush encodes one flush of the cycle: counters, gauges, then distributions with each SUMMARY
// before its HISTOGRAM, in an order without meaning, as Envoy does.
func newFlush(m *metricsv3.StreamMetricsMessage, requests *traffic, number int) (flush, error) {
	var out flush
	labelSets := len(requests.counts)
	var counters, distributions [][]*dto.MetricFamily
	for _, f := range m.GetEnvoyMetrics() {
		distribution := f.GetType() == dto.MetricType_SUMMARY || f.GetType() == dto.MetricType_HISTOGRAM
		switch {
		case isIstio(f) && !isOfFirstCaller(f):
		case isIstio(f):
			for set := range labelSets {
				own := ofLabelSet(f, set, requests.counts[set][number])
				switch {
				case f.GetType() == dto.MetricType_HISTOGRAM:
					pair := distributions[len(distributions)-labelSets+set]
					distributions[len(distributions)-labelSets+set] = append(pair, own)
				case distribution:
					distributions = append(distributions, []*dto.MetricFamily{own})
				default:
					counters = append(counters, []*dto.MetricFamily{own})
				}
			}
		case distribution:
			distributions = append([][]*dto.MetricFamily{{f}}, distributions...)
		default:
			counters = append(counters, []*dto.MetricFamily{f})
		}
	}
	shuffle := rand.New(rand.NewPCG(1, 2))
	shuffle.Shuffle(len(distributions), func(i, j int) { distributions[i], distributions[j] = distributions[j], distributions[i] })
	for _, group := range counters {
		if err := out.add(group); err != nil {
			return flush{}, err
		}
	}
	out.last = len(out.families)
	for _, group := range distributions {
		if err := out.add(group); err != nil {
			return flush{}, err
		}
	}
	out.workloads = find(out.families, workloadBits)
	if len(out.counters) != labelSets {
		return flush{}, fmt.Errorf("flush: %d request counters for %d label sets", len(out.counters), labelSets)
	}
	return out, nil
}

// The recording's two callers and its destination.
const (
	firstCaller  = "frontend-0"
	otherCaller  = "frontend-1"
	recordedName = "podinfo"
)

func isOfFirstCaller(f *dto.MetricFamily) bool {
	if strings.Contains(f.GetName(), otherCaller) {
		return false
	}
	for _, l := range f.GetMetric()[0].GetLabel() {
		if l.GetValue() == otherCaller {
			return false
		}
	}
	return true
}

// ofLabelSet returns the recorded family for another caller, with a count of its own.
func ofLabelSet(f *dto.MetricFamily, set int, n uint64) *dto.MetricFamily {
	f = proto.Clone(f).(*dto.MetricFamily)
	rename := strings.NewReplacer(firstCaller, fmt.Sprintf("caller-%02d", set), recordedName, workloadMark)
	f.Name = proto.String(rename.Replace(f.GetName()))
	m := f.GetMetric()[0]
	for _, l := range m.GetLabel() {
		l.Value = proto.String(rename.Replace(l.GetValue()))
	}
	switch f.GetType() {
	case dto.MetricType_COUNTER:
		m.Counter.Value = proto.Float64(valueMark)
	case dto.MetricType_SUMMARY:
		m.Summary.SampleCount = proto.Uint64(n)
		m.Summary.SampleSum = proto.Float64(meanValue * float64(n))
		for _, q := range m.GetSummary().GetQuantile() {
			if n == 0 {
				q.Value = proto.Float64(math.NaN())
			}
		}
	case dto.MetricType_HISTOGRAM:
		m.Histogram.SampleCount = proto.Uint64(n)
		m.Histogram.SampleSum = proto.Float64(meanValue * float64(n))
		for _, b := range m.GetHistogram().GetBucket() {
			b.CumulativeCount = proto.Uint64(cumulative(n, b.GetUpperBound()))
		}
	}
	return f
}

// meanValue is the mean of a simulated distribution, in the metric's unit: exponential, so that
// many buckets are filled.
const meanValue = 80

func cumulative(n uint64, bound float64) uint64 {
	return uint64(math.Round(float64(n) * (1 - math.Exp(-bound/meanValue))))
}

// add encodes families and notes where they are patched.
func (f *flush) add(group []*dto.MetricFamily) error {
	for _, family := range group {
		family = proto.Clone(family).(*dto.MetricFamily)
		family.GetMetric()[0].TimestampMs = proto.Int64(timeMark)
		b, err := proto.Marshal(&metricsv3.StreamMetricsMessage{EnvoyMetrics: []*dto.MetricFamily{family}})
		if err != nil {
			return fmt.Errorf("family %s: %w", family.GetName(), err)
		}
		start := len(f.families)
		f.families = append(f.families, b...)
		at := find(b, string(protowire.AppendVarint(protowire.AppendTag(nil, 6, protowire.VarintType), uint64(timeMark))))
		if len(at) != 1 {
			return fmt.Errorf("family %s: timestamp found %d times", family.GetName(), len(at))
		}
		f.timestamps = append(f.timestamps, start+at[0]+1)
		if family.GetMetric()[0].GetCounter().GetValue() != valueMark {
			continue
		}
		at = find(b, string(binary.LittleEndian.AppendUint64(nil, math.Float64bits(valueMark))))
		if len(at) != 1 {
			return fmt.Errorf("family %s: value found %d times", family.GetName(), len(at))
		}
		f.counters = append(f.counters, start+at[0]) // in the order of the label sets
	}
	return nil
}

// patch makes a copy of the flush, which b is, one of the given time, workload and number, of a pod
// that is so many flushes ahead in the cycle.
func (t *template) patch(b []byte, timestamp int64, workload int, number, ahead int64) {
	f := t.flush(number, ahead)
	var stamp [6]byte
	for i := range stamp {
		stamp[i] = byte(timestamp>>(7*i)) | 0x80
	}
	stamp[5] &= 0x7f
	for _, at := range f.timestamps {
		if at < len(b) {
			*(*[6]byte)(b[at:]) = stamp
		}
	}
	number4 := [4]byte([]byte(digits(workload, 4)))
	for _, at := range f.workloads {
		if at < len(b) {
			*(*[4]byte)(b[at:]) = number4
		}
	}
	for set, at := range f.counters {
		n := t.traffic.total(set, number+ahead+1) - t.traffic.total(set, ahead)
		binary.LittleEndian.PutUint64(b[at:], math.Float64bits(float64(n)))
	}
}

// identify returns the identifier of a pod.
func (t *template) identify(workload, pod, generation int) []byte {
	b := bytes.Clone(t.identifier)
	for _, at := range t.workload {
		copy(b[at:], digits(workload, 4))
	}
	for _, at := range t.pod {
		copy(b[at:], digits(pod, 4)+digits(generation, 3))
	}
	return b
}

// digits writes a number with a fixed width, in base 36 so that three digits are enough for the
// generations of a long run.
func digits(n, width int) string {
	const all = "0123456789abcdefghijklmnopqrstuvwxyz"
	b := make([]byte, width)
	for i := width - 1; i >= 0; i-- {
		b[i] = all[n%36]
		n /= 36
	}
	return string(b)
}

// find returns the offsets of a mark.
func find(b []byte, mark string) []int {
	var at []int
	for from := 0; ; {
		i := bytes.Index(b[from:], []byte(mark))
		if i < 0 {
			return at
		}
		at = append(at, from+i)
		from += i + len(mark)
	}
}
