package metricsapi

import (
	"context"
	"net"
)

// Server is the HTTPS side of meshpulse: the external metrics API, /healthz, /livez, /readyz, /metrics and /debug/hpas.
type Server struct{}

// New checks the options, reads certificates, tokens or the kubeconfig, and opens the port. Errors name the file, the
// address or the flag, and the remedy.
func New(o Options) (*Server, error) { panic("stub") }

// Addr is the address that the server listens on, with the port that was chosen where SecurePort is 0.
func (s *Server) Addr() net.Addr { panic("stub") }

// Run serves until the context ends; answers in flight are finished then, for at most 4 s. It returns nil after such an end.
func (s *Server) Run(ctx context.Context) error { panic("stub") }

// Status evaluates every metric of every HPA now; it is what /debug/hpas shows.
func (s *Server) Status(ctx context.Context) Status { panic("stub") }
