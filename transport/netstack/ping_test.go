package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestPing(t *testing.T) {
	a, _ := pair(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, to := range []netip.Addr{b4, b6, netip.MustParseAddr("::ffff:10.8.0.2"), a4} {
		for range 4 { // the calls run concurrently; each Ping must get its own answer
			wg.Add(1)
			go func() {
				defer wg.Done()
				if d, err := a.Ping(t.Context(), to); err != nil || d <= 0 {
					t.Errorf("ping of %v: round trip %v, error %v; want an answer", to, d, err)
				}
			}()
		}
	}
}

func TestPingFails(t *testing.T) {
	a, _, ab, _ := wired(t, 0)
	ab.cut.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := a.Ping(ctx, b4)
	wantOpError(t, "ping while all packets are lost", err, context.DeadlineExceeded)
	if e, ok := err.(net.Error); !ok || !e.Timeout() {
		t.Errorf("the error of a ping after its deadline is not a timeout: %v", err)
	}
	_, err = a.Ping(ctx, b4)
	wantOpError(t, "ping after the deadline", err, context.DeadlineExceeded)
	if _, err = a.Ping(t.Context(), netip.Addr{}); err == nil {
		t.Error("ping of the zero Addr succeeded, want an error")
	}
	time.AfterFunc(10*time.Millisecond, func() { _ = a.Close() })
	_, err = a.Ping(t.Context(), b6)
	wantOpError(t, "ping while closing", err, net.ErrClosed)
	_, err = a.Ping(t.Context(), b6)
	wantOpError(t, "ping when closed", err, net.ErrClosed)
	if len(a.pings.waiting) != 0 {
		t.Errorf("the Net still waits for the answers to %d pings, want 0", len(a.pings.waiting))
	}
}

// TestPingBuffer checks that the endpoint of a waiting ping keeps only a few of the messages that a peer sends.
func TestPingBuffer(t *testing.T) {
	n, _ := byHand(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = n.Ping(ctx, b4)
	}()
	waitFor(t, func() bool { return len(n.stack.RegisteredEndpoints()) > 0 })
	for _, e := range n.stack.RegisteredEndpoints() {
		if size := e.(tcpip.Endpoint).SocketOptions().GetReceiveBufferSize(); size != pingBuffer {
			t.Errorf("the endpoint of a ping has a receive buffer of %d bytes, want %d", size, pingBuffer)
		}
	}
	cancel()
	<-ended
}

// TestUnreachable answers each packet with the ICMP error that a device sends if it has no peer for the destination. It checks the
// errors that Ping and DialTCP return.
func TestUnreachable(t *testing.T) {
	n, err := New(Config{Addresses: []netip.Addr{a4, a6}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	n.link.attach(&wire{to: n, tap: func(p []byte) bool {
		e := hostUnreachable(p)
		go func() { _, _ = n.WritePackets([][]byte{e}) }()
		return true
	}})
	for _, to := range []netip.Addr{b4, b6} {
		_, err := n.Ping(t.Context(), to)
		wantOpError(t, "ping", err, syscall.EHOSTUNREACH)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err = n.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(to, 80))
		cancel()
		wantOpError(t, "dial", err, syscall.EHOSTUNREACH)
	}
}

// hostUnreachable and portUnreachable return ICMP errors about the packet p.
func hostUnreachable(p []byte) []byte {
	return unreachable(p, byte(header.ICMPv4HostUnreachable), byte(header.ICMPv6AddressUnreachable))
}

func portUnreachable(p []byte) []byte {
	return unreachable(p, byte(header.ICMPv4PortUnreachable), byte(header.ICMPv6PortUnreachable))
}

func unreachable(p []byte, code4, code6 byte) []byte {
	p = p[:min(len(p), 500)]
	if p[0]>>4 == 4 {
		e := make([]byte, 28, 28+len(p))
		h := header.IPv4(e)
		h.Encode(&header.IPv4Fields{
			TotalLength: uint16(28 + len(p)), TTL: 64, Protocol: protoICMP4,
			SrcAddr: header.IPv4(p).DestinationAddress(), DstAddr: header.IPv4(p).SourceAddress(),
		})
		h.SetChecksum(^h.CalculateChecksum())
		e = append(e, p...)
		e[20], e[21] = byte(header.ICMPv4DstUnreachable), code4
		binary.BigEndian.PutUint16(e[22:], ^packet.Sum(e[20:], 0))
		return e
	}
	e := make([]byte, 48, 48+len(p))
	header.IPv6(e).Encode(&header.IPv6Fields{
		PayloadLength: uint16(8 + len(p)), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: 64,
		SrcAddr: header.IPv6(p).DestinationAddress(), DstAddr: header.IPv6(p).SourceAddress(),
	})
	e = append(e, p...)
	e[40], e[41] = byte(header.ICMPv6DstUnreachable), code6
	binary.BigEndian.PutUint16(e[42:], ^packet.TransportSum(e, 40))
	return e
}

func TestQuotedEcho(t *testing.T) {
	// quotedEcho must not panic on any prefix of an ICMP error. It must return an error only if the prefix contains all headers
	// of the quoted echo request.
	echo := make([]byte, 28+4)
	h := header.IPv4(echo)
	h.Encode(&header.IPv4Fields{TotalLength: uint16(len(echo)), TTL: 64, Protocol: protoICMP4, SrcAddr: header.IPv4Loopback, DstAddr: header.IPv4Broadcast})
	echo[20] = byte(header.ICMPv4Echo)
	echo[24], echo[25] = 0x12, 0x34
	e := hostUnreachable(echo)
	for n := 20; n <= len(e); n++ {
		k, err := quotedEcho(e[:n])
		if whole := n >= 28+28; whole != errors.Is(err, syscall.EHOSTUNREACH) {
			t.Fatalf("quotedEcho of the first %d of %d bytes returned the error %v", n, len(e), err)
		} else if whole && k != (pingKey{netip.MustParseAddr("255.255.255.255"), 0x1234}) {
			t.Fatalf("quotedEcho of the first %d of %d bytes returned the key %v", n, len(e), k)
		}
	}
}
