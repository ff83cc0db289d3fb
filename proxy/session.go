package proxy

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard/internal/sockets"
)

// A session is a client's connection, from accept to its report, or a client's flow of UDP.
type session struct {
	server *Server
	client netip.Prefix // for the limit per client; invalid if the client has no IP address
	report Report       // all but the counts, Duration and Err; written by the session's goroutine
	silent bool         // reported otherwise; written before end

	sent, received atomic.Int64
	moved          atomic.Uint64 // changes when anything was carried that is not in sent and received

	mu    sync.Mutex // guards the rest
	conns []interface{ Close() error }
	err   error       // why the session fails
	ended bool        // conns are closed, and so is each that is added
	timer *time.Timer // looks for silence; nil if there is no limit
	seen  int64       // what the counts were when the timer looked last
	quiet int         // how often it found no change in a row
}

// accept admits a connection or closes it.
func (s *Server) accept(c net.Conn) {
	n := &session{server: s, report: Report{Client: c.RemoteAddr(), Start: time.Now()}, conns: []interface{ Close() error }{c}}
	if err := s.admit(n); err != nil {
		_ = c.Close()
		n.tell(err)
		return
	}
	n.watch(s.idle())
	go s.service.conn(n)
}

// admit counts a session, unless that would exceed a limit.
func (s *Server) admit(n *session) error {
	n.client = clientOf(n.report.Client)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		return errClosed
	case len(s.sessions) >= s.maxConns(), n.client.IsValid() && s.clients[n.client] >= s.maxConnsPerClient():
		return ErrLimit
	}
	s.sessions[n] = true
	if n.client.IsValid() {
		s.clients[n.client]++
	}
	return nil
}

// register counts a session without a limit, for those that have their own. It returns false if the server is closed.
func (s *Server) register(n *session) bool {
	n.client = clientOf(n.report.Client)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return false
	}
	s.sessions[n] = true
	if n.client.IsValid() {
		s.clients[n.client]++
	}
	return true
}

// clientOf returns the prefix that counts as one client. Whoever has an IPv6 address has the 64 bits behind its prefix.
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

// own makes the session close c when it ends or fails.
func (n *session) own(c interface{ Close() error }) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		sockets.Abort(c)
		return
	}
	n.conns = append(n.conns, c)
}

// fail records why the session ends, and resets its connections, so that no peer takes the end for the end of the data. The first
// call counts.
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

// end closes what the session owns, and reports it. err is nil or why the session ended, unless fail knows better. It must be
// called once.
func (n *session) end(err error) {
	n.mu.Lock()
	if n.err != nil {
		err = n.err
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
	if n.client.IsValid() {
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

// quarters is how often per idle time the timer looks.
const quarters = 4

// watch ends the session when it has carried nothing for d. Zero means never. Each look costs one timer per quarter of d, and
// the relays need no clock.
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

// traffic changes whenever the session carries something.
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
