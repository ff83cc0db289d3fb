package proxy

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard/internal/sockets"
	"github.com/seed-86b749af/wireguard/internal/stackroom"
)

// A session is a client's connection, from Accept until Server.Done has got its report, or a UDP flow of a client.
type session struct {
	server   *Server
	client   netip.Prefix // for the limit per client; invalid if the client has no IP address
	admitted bool         // whether it is counted in Server.conns and Server.clients
	refused  bool         // whether it is beyond a limit, so that it only gets an error code; counted in Server.refused
	report   Report       // tell adds Sent, Received, Duration and Err; the session's goroutine writes the rest
	silent   bool         // whether end makes no report, because each HTTP exchange has its own; written before end

	sent, received atomic.Int64
	moved          atomic.Uint64 // changes when the session carries what sent and received do not count, such as an empty datagram

	mu    sync.Mutex // guards the rest
	conns []interface{ Close() error }
	err   error       // why the session fails
	ended bool        // whether conns were closed; if true, own closes a further connection at once
	timer *time.Timer // calls look, or ends a refused session; nil if there is no idle limit
	seen  int64       // what traffic returned at the last call of look
	quiet int         // how many calls of look in a row found no traffic
}

// The server refuses a client beyond a limit with an error code of the protocol as long as these bounds permit it. Otherwise it
// closes the connection at once.
const (
	maxRefused  = 64              // how many refused connections may wait for their error code at the same time
	refusalTime = 5 * time.Second // how long the refusal of a connection may take
)

// accept admits a connection, or refuses it.
func (s *Server) accept(c net.Conn) {
	n := &session{server: s, report: Report{Client: c.RemoteAddr(), Start: time.Now()}, conns: []interface{ Close() error }{c}}
	if err := s.admit(n); err != nil {
		_ = c.Close()
		n.tell(err)
		return
	}
	if n.refused {
		n.timer = time.AfterFunc(refusalTime, func() { n.fail(ErrLimit) })
	} else {
		n.watch(s.idle())
	}
	go func() {
		stackroom.Take() // most sessions dial through gVisor, which needs a large stack
		s.service.conn(n)
	}()
}

// admit counts a connection as admitted. If that would exceed a limit, admit marks the session as refused instead. It returns
// an error if the connection must be closed without an error code.
func (s *Server) admit(n *session) error {
	n.client = clientOf(n.report.Client)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		return errClosed
	case s.conns >= s.maxConns(), n.client.IsValid() && s.clients[n.client] >= s.maxConnsPerClient():
		if !s.service.refuses || s.refused >= maxRefused {
			return ErrLimit
		}
		s.sessions[n], n.refused = true, true
		s.refused++
		return nil
	}
	s.sessions[n], n.admitted = true, true
	s.conns++
	if n.client.IsValid() {
		s.clients[n.client]++
	}
	return nil
}

// register adds a session to which the limits of connections do not apply. UDP flows have their own limits in their own table. So
// a flood of datagrams, whose source addresses may be forged, cannot use up the limits of connections. register returns false if
// the server is closed.
func (s *Server) register(n *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.draining {
		s.sessions[n] = true
	}
	return !s.draining
}

// clientOf returns the prefix that counts as one client. A host with one IPv6 address can usually take all addresses of the same
// 64-bit prefix.
func clientOf(a net.Addr) netip.Prefix {
	var ip netip.Addr
	switch a := a.(type) {
	case *net.TCPAddr:
		ip = a.AddrPort().Addr()
	case *net.UDPAddr:
		ip = a.AddrPort().Addr()
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return netip.PrefixFrom(ip, 32)
	}
	p, _ := ip.Prefix(64)
	return p
}

// conn returns the client's connection.
func (n *session) conn() net.Conn { return n.conns[0].(net.Conn) }

// own makes the session close c when the session ends or fails.
func (n *session) own(c interface{ Close() error }) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		sockets.Abort(c)
		return
	}
	n.conns = append(n.conns, c)
}

// fail records why the session ends, and resets its connections, so that neither side believes that it has all the data. Only the
// first call has an effect.
func (n *session) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		return
	}
	n.ended, n.err = true, err
	for _, c := range n.conns {
		sockets.Abort(c)
	}
}

// end closes what the session owns, and reports the session. err is why it ended, or nil; an error that fail has recorded takes
// precedence, and a refused session ends with ErrLimit. The session's goroutine calls end once.
func (n *session) end(err error) {
	n.mu.Lock()
	if n.err != nil {
		err = n.err
	} else if n.refused {
		err = ErrLimit
	}
	if !n.ended {
		n.ended = true
		for _, c := range n.conns {
			_ = c.Close()
		}
	}
	if n.timer != nil {
		n.timer.Stop()
	}
	n.mu.Unlock()
	n.tell(err)
	n.server.remove(n)
}

func (s *Server) remove(n *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, n)
	if n.refused {
		s.refused--
	}
	if n.admitted {
		s.conns--
	}
	if n.admitted && n.client.IsValid() {
		if s.clients[n.client]--; s.clients[n.client] == 0 {
			delete(s.clients, n.client)
		}
	}
	if s.empty != nil && len(s.sessions) == 0 && s.draining {
		select {
		case <-s.empty:
		default:
			close(s.empty)
		}
	}
}

// tell calls Server.Done.
func (n *session) tell(err error) {
	if n.server.Done == nil || n.silent {
		return
	}
	r := n.report
	r.Sent, r.Received, r.Err = n.sent.Load(), n.received.Load(), err
	r.Duration = time.Since(r.Start)
	n.server.Done(r)
}

// quarters is how many times the timer calls look within the idle time.
const quarters = 4

// watch makes the session fail once it has carried nothing for d. If d is zero, watch does nothing. A timer compares the counts
// every quarter of d, so the relays need not note the time of what they copy.
func (n *session) watch(d time.Duration) {
	if d == 0 {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	every := max(d/quarters, time.Millisecond)
	n.seen = n.traffic()
	n.timer = time.AfterFunc(every, func() { n.look(every) })
}

// traffic returns a number that changes whenever the session carries something.
func (n *session) traffic() int64 { return n.sent.Load() + n.received.Load() + int64(n.moved.Load()) }

func (n *session) look(every time.Duration) {
	n.mu.Lock()
	now := n.traffic()
	if now == n.seen {
		n.quiet++
	} else {
		n.seen, n.quiet = now, 0
	}
	silent := n.quiet >= quarters
	if !silent && !n.ended {
		n.timer.Reset(every)
	}
	n.mu.Unlock()
	if silent {
		n.fail(ErrIdle)
	}
}
