package envoystats

import (
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/meshpulse/meshpulse/aggregator"
)

// A flush of 142 KB over TLS 1.2, read as gRPC reads it, from the socket to where its frames begin.
// sink-us/op is the CPU of the reading thread alone, cpu-us/op that of both sides.
func BenchmarkReadTLS(b *testing.B) {
	mesh := newAuthority(b)
	serving := Serving(mesh.issue(sinkID), mesh.pool())
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		b.Fatal(err)
	}
	c := Config{Mutual: &Mutual{Serving: func() *tls.Config { return serving }}}
	s, err := NewServer(c, store)
	if err != nil {
		b.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	flush := framesOf()
	for range 9 {
		flush = append(flush, framesOf(frame{frameData, 0, 1, make([]byte, 16<<10-512)})[len(clientPreface):]...)
	}
	flush = flush[len(clientPreface):]
	begin := make(chan bool)
	defer close(begin)
	go func() {
		client, err := tls.Dial("tcp", lis.Addr().String(), &tls.Config{
			InsecureSkipVerify: true, Certificates: []tls.Certificate{sidecarCertificate(mesh)}, NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12,
		})
		if err != nil {
			return
		}
		defer func() { _ = client.Close() }()
		_, _ = io.WriteString(client, clientPreface)
		for range begin {
			if _, err := client.Write(flush); err != nil {
				return
			}
		}
	}()
	raw, err := lis.Accept()
	if err != nil {
		b.Fatal(err)
	}
	counted := s.conns.admit(raw)
	conn, _, err := newDoors(c, s.conns).ServerHandshake(counted)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, len(clientPreface))); err != nil {
		b.Fatal(err)
	}
	reader, pool := conn.(interface {
		ReadOnReady(size int, pool mem.BufferPool) (*[]byte, int, error)
	}), mem.NewTieredBufferPool(readBuffer)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.SetBytes(int64(len(flush)))
	var took time.Duration
	reads, all := 0, processCPU(b)
	for b.Loop() {
		counted.frames = frames{}
		before := threadCPU(b)
		begin <- true
		for n := 0; n < len(flush); {
			buf, read, err := reader.ReadOnReady(readBuffer, pool)
			if err != nil {
				b.Fatal(err)
			}
			n += read
			reads++
			pool.Put(buf)
		}
		took += threadCPU(b) - before
	}
	b.ReportMetric(float64(took.Microseconds())/float64(b.N), "sink-us/op")
	b.ReportMetric(float64((processCPU(b)-all).Microseconds())/float64(b.N), "cpu-us/op")
	b.ReportMetric(float64(reads)/float64(b.N), "reads/op")
}
