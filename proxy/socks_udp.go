package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard/internal/sockets"
)

// An association relays the datagrams of one UDP ASSOCIATE between two sockets.
//
//	client ── UDP with a header ──▶ inside ─ association ─▶ outside ── UDP ──▶ any target
type association struct {
	*session
	inside, outside sockets.Datagrams
	allowed         netip.Addr                     // the client's IP address; invalid if it has none, so that any address may send
	from            atomic.Pointer[netip.AddrPort] // the client's address and port; nil until associate or up sets it
	names           names
}

// associate serves UDP ASSOCIATE. named is the address from which the client says that it will send.
func (p SOCKS5) associate(s *Server, n *session, named string) error {
	c := n.conn()
	a := &association{session: n, allowed: addrPort(c.RemoteAddr()).Addr(), names: names{server: s}}
	if from, err := netip.ParseAddrPort(named); err == nil && from.Port() != 0 && (from.Addr().IsUnspecified() || from.Addr().Unmap() == a.allowed) {
		from = netip.AddrPortFrom(a.allowed, from.Port())
		a.from.Store(&from)
	}
	if err := a.open(s, p.ListenPacket, c.LocalAddr()); err != nil {
		_ = c.SetWriteDeadline(s.deadline())
		_ = reply(c, replies[failureOf(err)], nil)
		return err
	}
	err := reply(c, replySucceeded, a.inside.LocalAddr())
	if err != nil {
		return err
	}
	go a.up()
	go a.down()
	// RFC 1928, section 6: "A UDP association terminates when the TCP connection that the UDP ASSOCIATE request arrived on
	// terminates."
	for b := make([]byte, 64); err == nil; {
		_, err = c.Read(b)
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// open opens the two sockets.
func (a *association) open(s *Server, listen func(network, address string) (net.PacketConn, error), reached net.Addr) error {
	if listen == nil {
		listen = net.ListenPacket
	}
	host := ""
	if ip := addrPort(reached).Addr(); ip.IsValid() {
		host = ip.String()
	}
	in, err := listen("udp", net.JoinHostPort(host, "0"))
	if err != nil {
		return fmt.Errorf("proxy: open the socket for a client's datagrams: %w", err)
	}
	a.own(in)
	out, err := s.ListenPacket("udp", ":0")
	if err != nil {
		return fmt.Errorf("proxy: open the socket for datagrams to targets: %w", err)
	}
	a.own(out)
	a.inside, a.outside = sockets.DatagramsOf(in), sockets.DatagramsOf(out)
	return nil
}

// up sends the client's datagrams to their targets. It drops a datagram that is malformed, or whose target is a name that
// does not resolve.
func (a *association) up() {
	err := each(a.inside, sockets.Waiter(a.inside), func(b []byte, from netip.AddrPort) {
		if !a.mine(from) {
			return
		}
		to, name, data, err := parseDatagram(b)
		if err == nil && name != nil {
			to, err = a.names.resolve(name, to.Port())
		}
		if err != nil {
			return
		}
		a.sent.Add(int64(len(data)))
		a.moved.Add(1) // data may be empty
		_, _ = a.outside.WriteToUDPAddrPort(data, to)
	})
	a.fail(err)
}

// mine reports whether from is the client's address and port. If the client has not named a port, the source port of the first
// datagram becomes the client's port.
func (a *association) mine(from netip.AddrPort) bool {
	if known := a.from.Load(); known != nil {
		return *known == from
	}
	if a.allowed.IsValid() && from.Addr() != a.allowed {
		return false
	}
	a.from.Store(&from)
	return true
}

// down sends the targets' datagrams to the client.
func (a *association) down() {
	err := each(a.outside, sockets.Waiter(a.outside), func(b []byte, from netip.AddrPort) {
		client := a.from.Load()
		if client == nil {
			return
		}
		a.received.Add(int64(len(b)))
		a.moved.Add(1)
		msg := datagramBuffers.Get().(*[]byte)
		head := appendAddress(append((*msg)[:0], 0, 0, 0), from)
		if len(head)+len(b) <= len(*msg) {
			_, _ = a.inside.WriteToUDPAddrPort(append(head, b...), *client)
		}
		datagramBuffers.Put(msg)
	})
	a.fail(err)
}

var errDatagram = errors.New("proxy: SOCKS datagram that is short, fragmented or has an unknown address type")

// parseDatagram parses "RSV RSV FRAG ATYP DST.ADDR DST.PORT DATA". If name is nil, the target is the address to. Otherwise
// the target is the host with this name, and only the port of to counts. name and data are parts of b. RFC 1928, section 7:
// "An implementation that does not support fragmentation MUST drop any datagram whose FRAG field is other than X'00'."
func parseDatagram(b []byte) (to netip.AddrPort, name, data []byte, err error) {
	if len(b) < 5 || b[2] != 0 {
		return to, nil, nil, errDatagram
	}
	at, k := 4, 0
	switch b[3] {
	case addressIP4:
		k = 4
	case addressIP6:
		k = 16
	case addressName:
		at, k = 5, int(b[4])
	}
	if k == 0 || len(b) < at+k+2 {
		return to, nil, nil, errDatagram
	}
	host, b := b[at:at+k], b[at+k:]
	ip := netip.Addr{}
	if at == 4 {
		ip, _ = netip.AddrFromSlice(host)
		host = nil
	}
	return netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(b)), host, b[2:], nil
}

// names resolves the names in the datagrams of one association. It asks the dialer, so names are resolved in the tunnel if the
// dialer resolves them there.
type names struct {
	server *Server
	known  map[string]knownName
}

type knownName struct {
	addr  netip.Addr
	err   error
	until time.Time
}

const (
	maxNames  = 64
	nameLife  = time.Minute
	nameRetry = 5 * time.Second // how long a failure is remembered
	nameWait  = 5 * time.Second // the longest time that one name holds up the association's next datagrams
)

// resolve returns the address of a name. Only association.up calls it, so names needs no lock.
func (r *names) resolve(name []byte, port uint16) (netip.AddrPort, error) {
	k, ok := r.known[string(name)]
	if !ok || time.Now().After(k.until) {
		k = r.ask(string(name), port)
		if r.known == nil || len(r.known) >= maxNames {
			r.known = make(map[string]knownName)
		}
		r.known[string(name)] = k
	}
	return netip.AddrPortFrom(k.addr, port), k.err
}

var errNoAddress = errors.New("proxy: the dialer's connection does not tell its remote address; it must be a *net.UDPAddr")

// ask resolves a name by dialing it over UDP. The dial sends nothing except the resolver's queries.
func (r *names) ask(host string, port uint16) (k knownName) {
	if ip, err := netip.ParseAddr(host); err == nil { // the client has sent an address as a name
		return knownName{addr: ip.Unmap(), until: time.Now().Add(nameLife)}
	}
	ctx, cancel := context.WithTimeout(r.server.context, nameWait)
	defer cancel()
	c, err := r.server.dial(ctx, "udp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err == nil {
		k.addr = addrPort(c.RemoteAddr()).Addr()
		_ = c.Close()
		if !k.addr.IsValid() {
			err = errNoAddress
		}
	}
	if err != nil {
		return knownName{err: err, until: time.Now().Add(nameRetry)}
	}
	k.until = time.Now().Add(nameLife)
	return k
}
