package envoystats

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Config is what a sink can be told. The zero value of a field means its default.
type Config struct {
	// Keep lists prefixes of the families that are read, after Istio's stat prefix "istiocustom." has been taken off
	// (default "istio_"; "" keeps everything). istio_request_duration_milliseconds is always read: a counter's past is
	// taken from it.
	Keep []string
	// CustomTags names the tags that Telemetry resources add to Istio's own. They are needed where tags come
	// joined in the family's name; without, what follows the last known tag is kept whole in the label custom_tags.
	CustomTags []string
	// MaxMessageBytes bounds one message (default 64 MiB). A sidecar whose flush is larger loops for ever, so it is well
	// above what they send.
	MaxMessageBytes int
	// MaxStreams bounds the streams that are open at once (default 50,000).
	MaxStreams int
	// MaxNameBytes bounds a family's name (default 8 KiB: in Istio's default mode all labels are in it),
	// MaxLabelBytes the name or value of one label (default 2 KiB), MaxLabels the labels of a series (default 64),
	// MaxBuckets the buckets of a histogram (default 256). A sample beyond is dropped and counted.
	MaxNameBytes, MaxLabelBytes, MaxLabels, MaxBuckets int
	// TLS serves the sink over TLS; a client certificate that it verified sets [aggregator.Pod.Peer]. Nil is plaintext:
	// anyone who reaches the port can then report as any pod.
	TLS *tls.Config
	// Registerer receives the sink's own metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
	// Logger takes the state changes of streams (default slog.Default).
	Logger *slog.Logger
	// Now is the clock that stamps a message's arrival (default time.Now).
	Now func() time.Time
}

// Validate returns an error that names the first setting that cannot be used.
func (c Config) Validate() error { panic("stub") }

// Server is the sink. It is safe for concurrent use.
type Server struct{}

// NewServer returns a sink that reports to the store, or an error that names the setting that is wrong.
func NewServer(c Config, store *aggregator.Store) (*Server, error) { panic("stub") }

// Serve accepts sidecars on the listener until Shutdown, after which it returns nil. It closes the listener.
func (s *Server) Serve(lis net.Listener) error { panic("stub") }

// Shutdown ends the sink: no new streams, every open one ends after the message it is in, and what does not within
// a second (Envoy never ends a stream by itself) or before the context ends is cut off. It returns the context's
// error if that came first.
func (s *Server) Shutdown(ctx context.Context) error { panic("stub") }
