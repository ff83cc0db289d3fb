package proxy

import (
	"errors"
	"fmt"
	"net"

	"github.com/seed-86b749af/wireguard/internal/sockets"
)

// Forward connects every client to one target. Serve forwards TCP connections, and ServePacket forwards datagrams: each address and
// port of a client has a flow with its own connection to the target. If the dial of a TCP connection fails, the client's connection
// is reset.
//
// A flow of UDP ends after Server.IdleTimeout without a datagram in either direction, or when another flow takes its place (see
// Server.MaxConns). Its client's next datagram opens another flow.
type Forward struct {
	// Target is where the connections and datagrams go, "host:port". Serve fails if it is empty.
	Target string
}

var errTarget = errors.New("proxy: Forward.Target is empty; set host:port")

func (p Forward) start(s *Server) (service, error) {
	if p.Target == "" {
		return service{}, errTarget
	}
	return service{
		conn:    func(n *session) { n.end(p.serve(s, n)) },
		packets: func(c net.PacketConn) error { return p.servePackets(s, c) },
	}, nil
}

func (p Forward) serve(s *Server, n *session) error {
	n.report.Target = p.Target
	to, err := s.dial(s.context, "tcp", p.Target)
	if err != nil {
		sockets.Abort(n.conn()) // the answer that a refused connection gets
		return fmt.Errorf("proxy: dial %s: %w", p.Target, err)
	}
	n.own(to)
	return n.relay(n.conn(), to)
}
