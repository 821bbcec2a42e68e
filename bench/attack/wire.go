package attack

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// Kinds and flags of HTTP/2's frames (RFC 9113, section 6).
const (
	data, headers, reset, settings, continuation = 0, 1, 3, 4, 9

	padded, endHeaders = 8, 4
)

// conn is a connection that speaks as much HTTP/2 as it likes. Its errors mean that it was closed,
// which is what many attacks meet.
type conn struct {
	net.Conn
	err   error
	ended atomic.Bool // the other side has closed it
}

// dial opens a connection from the pod's own address, over TLS where there is something to secure
// it with.
func dial(ctx context.Context, from Pod, target string, security *tls.Config) (*conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from.from(), 0)), Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return nil, err
	}
	if security != nil {
		t := tls.Client(c, security)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = c.Close()
			return nil, err
		}
		c = t
	}
	x := &conn{Conn: c}
	go func() { // what is said is not listened to, but taken
		b := make([]byte, 4096)
		for {
			if _, err := c.Read(b); err != nil {
				x.ended.Store(true)
				return
			}
		}
	}()
	x.write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	x.frame(settings, 0, 0, nil)
	return x, nil
}

func (c *conn) write(b []byte) {
	if c.err != nil {
		return
	}
	_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, c.err = c.Write(b)
}

func (c *conn) frame(kind, flags byte, stream uint32, body []byte) {
	c.write(frame(kind, flags, stream, body))
}

func frame(kind, flags byte, stream uint32, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(body))<<8|uint32(kind))
	b = binary.BigEndian.AppendUint32(append(b, flags), stream)
	return append(b, body...)
}

// open opens a stream, with more headers in pairs.
func (c *conn) open(stream uint32, flags byte, more ...string) {
	c.frame(headers, flags, stream, block(more...))
}

func block(more ...string) []byte {
	all := append([]string{
		":method", "POST", ":scheme", "http", ":path", metricsv3.MetricsService_StreamMetrics_FullMethodName, ":authority", "x",
		"content-type", "application/grpc", "te", "trailers",
	}, more...)
	var b []byte
	for i := 0; i < len(all); i += 2 { // literals without indexing
		b = append(append(b, 0, byte(len(all[i]))), all[i]...)
		b = append(append(b, byte(len(all[i+1]))), all[i+1]...)
	}
	return b
}

// message sends a whole message in frames of 16 KiB.
func (c *conn) message(stream uint32, b []byte, compressed bool) {
	all := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b)))
	if compressed {
		all[0] = 1
	}
	all = append(all, b...)
	for len(all) > 0 && c.err == nil {
		n := min(len(all), 16<<10)
		c.frame(data, 0, stream, all[:n])
		all = all[n:]
	}
}

func (p Pod) identifier() *metricsv3.StreamMetricsMessage_Identifier {
	meta := map[string]any{"NAMESPACE": p.Namespace, "NAME": p.Name, "WORKLOAD_NAME": p.Workload}
	if p.Flush != "" {
		meta["ANNOTATIONS"] = map[string]any{"sidecar.istio.io/statsFlushInterval": p.Flush}
	}
	m, err := structpb.NewStruct(meta)
	if err != nil {
		panic(err) // texts alone
	}
	return &metricsv3.StreamMetricsMessage_Identifier{Node: &corev3.Node{Id: "sidecar~" + p.Address + "~" + p.Name + "." + p.Namespace + "~x", Metadata: m}}
}

// message is one with the families.
func message(p *Pod, families ...*dto.MetricFamily) []byte {
	m := &metricsv3.StreamMetricsMessage{EnvoyMetrics: families}
	if p != nil {
		m.Identifier = p.identifier()
	}
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err) // what is made here is valid
	}
	return b
}

// requests is a counter of requests with labels in pairs.
func requests(at time.Time, v float64, labels ...string) *dto.MetricFamily {
	metric := &dto.Metric{Counter: &dto.Counter{Value: proto.Float64(v)}, TimestampMs: proto.Int64(at.UnixMilli())}
	for i := 0; i < len(labels); i += 2 {
		metric.Label = append(metric.Label, &dto.LabelPair{Name: proto.String(labels[i]), Value: proto.String(labels[i+1])})
	}
	return &dto.MetricFamily{Name: proto.String("istiocustom.istio_requests_total"), Type: dto.MetricType_COUNTER.Enum(), Metric: []*dto.Metric{metric}}
}

// received are the labels of what a workload's pods receive.
func received(namespace, workload string, more ...string) []string {
	return append([]string{
		"reporter", "destination", "destination_workload", workload, "destination_workload_namespace", namespace,
		"destination_canonical_service", workload, "response_code", "200",
	}, more...)
}

func numbered(prefix string, i int) string { return fmt.Sprint(prefix, "-", i) }
