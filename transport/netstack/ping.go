package netstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// pings records the echo requests that wait for an answer, so that an ICMP error can end a ping. gVisor does not report ICMP
// errors to its echo endpoints. The zero value is ready.
type pings struct {
	mu      sync.Mutex             // guards the field waiting
	waiting map[pingKey]chan error // each channel has a buffer of one
}

// A pingKey is the part of an echo request that an ICMP error quotes.
type pingKey struct {
	to    netip.Addr
	ident uint16
}

func (ps *pings) add(k pingKey) <-chan error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.waiting == nil {
		ps.waiting = make(map[pingKey]chan error)
	}
	c := make(chan error, 1)
	ps.waiting[k] = c
	return c
}

func (ps *pings) remove(k pingKey) {
	ps.mu.Lock()
	delete(ps.waiting, k)
	ps.mu.Unlock()
}

// fail ends the ping that the ICMP error p is about, if any.
func (ps *pings) fail(p []byte) {
	k, err := quotedEcho(p)
	if err == nil {
		return
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	select {
	case ps.waiting[k] <- err: // if no ping waits for this key, the channel is nil and never ready
	default:
	}
}

// quotedEcho returns the key of the echo request that the ICMP error p quotes, and the error with which the ping fails. The header
// of p must be intact. err is nil if p quotes no echo request, or is an error that does not end a ping.
func quotedEcho(p []byte) (k pingKey, err error) {
	const quote = header.ICMPv4MinimumSize // bytes of the ICMP header, in ICMPv4 and in ICMPv6
	var to []byte
	if p[0]>>4 == 4 {
		l3 := int(p[0]&15) * 4
		if len(p) < l3+quote+header.IPv4MinimumSize {
			return k, nil
		}
		q := p[l3+quote:]
		at := int(q[0]&15) * 4
		if at < header.IPv4MinimumSize || len(q) < at+header.ICMPv4MinimumSize || q[ip4Protocol] != protoICMP4 ||
			header.ICMPv4Type(q[at]) != header.ICMPv4Echo || header.ICMPv4Type(p[l3]) != header.ICMPv4DstUnreachable {
			return k, nil
		}
		to, err = q[ip4Addresses+4:ip4Addresses+8], unreachable4(p[l3+1])
		k.ident = binary.BigEndian.Uint16(q[at+4:])
	} else {
		const l3 = header.IPv6MinimumSize
		if len(p) < l3+quote+l3+header.ICMPv6EchoMinimumSize {
			return k, nil
		}
		q := p[l3+quote:]
		if q[ip6Next] != protoICMP6 || header.ICMPv6Type(q[l3]) != header.ICMPv6EchoRequest ||
			header.ICMPv6Type(p[l3]) != header.ICMPv6DstUnreachable {
			return k, nil
		}
		to, err = q[ip6Addresses+16:ip6Addresses+32], unreachable6(p[l3+1])
		k.ident = binary.BigEndian.Uint16(q[l3+4:])
	}
	k.to, _ = netip.AddrFromSlice(to)
	return k, err
}

func unreachable4(code byte) error {
	switch header.ICMPv4Code(code) {
	case header.ICMPv4NetUnreachable, header.ICMPv4DestinationNetworkUnknown, header.ICMPv4NetProhibited, header.ICMPv4NetUnreachableForTos:
		return syscall.ENETUNREACH
	case header.ICMPv4FragmentationNeeded:
		return nil
	}
	return syscall.EHOSTUNREACH
}

func unreachable6(code byte) error {
	if header.ICMPv6Code(code) == header.ICMPv6NetworkUnreachable {
		return syscall.ENETUNREACH
	}
	return syscall.EHOSTUNREACH
}

// pingData is the number of data bytes in an echo request, as in ping(8).
const pingData = 56

// pingBuffer is how many bytes of received messages may wait for a ping. gVisor counts only the 8 bytes of the shortest message,
// which takes 100 times as much memory.
const pingBuffer = 4 << 10

// Ping sends one ICMP echo request with 56 bytes of data to addr and returns how long the answer took. It fails when ctx ends, or
// with the error that an ICMP message reports, such as syscall.EHOSTUNREACH from a device that has no route. An unspecified
// addr means the Net itself.
func (n *Net) Ping(ctx context.Context, addr netip.Addr) (time.Duration, error) {
	d, err := n.ping(ctx, addr.Unmap().WithZone(""))
	if err != nil {
		return 0, &net.OpError{Op: "ping", Net: "ip", Addr: &net.IPAddr{IP: addr.AsSlice(), Zone: addr.Zone()}, Err: err}
	}
	return d, nil
}

func (n *Net) ping(ctx context.Context, addr netip.Addr) (time.Duration, error) {
	if !addr.IsValid() {
		return 0, &net.AddrError{Err: "missing address"}
	}
	if ctx.Err() != nil {
		return 0, contextError(ctx)
	}
	addr = n.self(netip.AddrPortFrom(addr, 0)).Addr()
	if err := n.unreachable("connect", addr); err != nil {
		return 0, err
	}
	if err := several("connect", addr, "Ping waits for the answer of one"); err != nil {
		return 0, err
	}
	// ICMPv4 and ICMPv6 have different types for echo requests. The positions of the identifier, the sequence number and the data
	// are the same.
	transport, request := icmp.ProtocolNumber4, byte(header.ICMPv4Echo)
	if addr.Is6() {
		transport, request = icmp.ProtocolNumber6, byte(header.ICMPv6EchoRequest)
	}
	s := new(socket)
	err := n.makeEndpoint(transport, protocolOf(addr), func(ep tcpip.Endpoint, q *waiter.Queue) error {
		ep.SocketOptions().SetReceiveBufferSize(pingBuffer, false)
		if err := ep.Connect(fullAddress(netip.AddrPortFrom(addr, 0))); err != nil {
			return systemError("connect", err)
		}
		s.init(n, "ip", ep, q)
		return nil
	})
	if err != nil {
		return 0, err
	}
	defer s.close()
	local, terr := s.ep.GetLocalAddress() // the port of local is the ICMP identifier that gVisor chose
	if terr != nil {
		return 0, s.failure("getsockname", terr)
	}
	key := pingKey{addr, local.Port}
	failed := n.pings.add(key)
	defer n.pings.remove(key)

	message := make([]byte, header.ICMPv4MinimumSize+pingData)
	message[0] = request
	binary.BigEndian.PutUint16(message[6:], 1)
	begin := time.Now()
	if _, err := s.ep.Write(bytes.NewReader(message), tcpip.WriteOptions{}); err != nil {
		return 0, s.failure("sendto", err)
	}
	if err := s.awaitEcho(ctx, message[6:], failed); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

// awaitEcho reads until an answer arrives whose sequence number and data equal want. It returns early if failed yields an error,
// ctx ends, or the Net is closed.
func (s *socket) awaitEcho(ctx context.Context, want []byte, failed <-chan error) error {
	for {
		drain(s.readable)
		var reply bytes.Buffer
		_, err := s.ep.Read(&reply, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			if bytes.HasSuffix(reply.Bytes(), want) {
				return nil
			}
			continue
		case *tcpip.ErrWouldBlock:
		default:
			return s.failure("recvfrom", err)
		}
		select {
		case <-s.readable:
		case err := <-failed:
			return os.NewSyscallError("recvfrom", err)
		case <-ctx.Done():
			return contextError(ctx)
		case <-s.net.done:
			return net.ErrClosed
		}
	}
}
