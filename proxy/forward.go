package proxy

import (
	"errors"
	"fmt"
	"net"

	"github.com/seed-86b749af/wireguard/internal/sockets"
)

// Forward connects every client to one target. Serve forwards TCP connections, and ServePacket forwards datagrams. For each
// address and port of a client, ServePacket opens a flow with its own connection to the target. If the dial for a TCP client
// fails, the server resets the client's connection.
//
// A UDP flow ends after Server.IdleTimeout without a datagram in either direction, or when another flow replaces it (see
// Server.MaxConns). The client's next datagram then opens another flow.
type Forward struct {
	// Target is the address to which the connections and datagrams are forwarded, "host:port". Serve fails if it is empty.
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
		sockets.Abort(n.conn()) // a reset, as from a closed port
		return fmt.Errorf("proxy: dial %s: %w", p.Target, err)
	}
	n.own(to)
	return n.relay(n.conn(), to)
}
