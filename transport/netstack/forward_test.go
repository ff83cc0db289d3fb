package netstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// far4 and far6 are hosts that can be reached only with Config.Forward.
var (
	far4 = netip.MustParseAddr("203.0.113.7")
	far6 = netip.MustParseAddr("2001:db8::7")
)

// answering returns a Forward that answers pings and accepts TCP connections and UDP flows. It writes the network, the
// destination and the peer to each connection, and then sends back what it receives.
func answering(t testing.TB) func(*Flow) {
	return func(f *Flow) {
		if f.Network() == "ping" {
			if err := f.Answer(); err != nil {
				t.Error(err)
			}
			return
		}
		c, err := f.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if c.LocalAddr().String() != f.Destination().String() || c.RemoteAddr().String() != f.Source().String() {
			t.Errorf("the connection is from %v to %v, want from %v to %v", c.LocalAddr(), c.RemoteAddr(), f.Destination(), f.Source())
		}
		fmt.Fprintf(c, "%s %v %v ", f.Network(), f.Destination(), f.Peer())
		_, _ = io.Copy(c, c)
	}
}

// TestForward checks that each client reaches hosts that only Config.Forward provides, over TCP, UDP and ICMP, with IPv4 and IPv6.
// It also checks that the program knows the client's key. Connections to the gateway's own addresses still work.
func TestForward(t *testing.T) {
	g := newGateway(t, Config{Forward: answering(t)})
	l, err := g.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			_, _ = io.WriteString(c, "own")
			_ = c.Close()
		}
	}()
	for i, n := range g.clients {
		for _, far := range []netip.Addr{far4, far6} {
			if _, err := n.Ping(briefly(t), far); err != nil {
				t.Errorf("client %d: the ping to %v failed: %v", i, far, err)
			}
			for _, network := range []string{"tcp", "udp"} {
				to := netip.AddrPortFrom(far, 80).String()
				c, err := n.DialContext(briefly(t), network, to)
				if err != nil {
					t.Errorf("client %d cannot connect: %v", i, err)
					continue
				}
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				want := fmt.Sprintf("%s %s %v ", network, to, g.keys[i])
				if network == "udp" {
					_, _ = io.WriteString(c, "x") // Read returns one datagram at a time
				} else {
					_, _ = io.WriteString(c, "hello")
					_ = c.(*TCPConn).CloseWrite()
					want += "hello"
				}
				b := make([]byte, len(want))
				if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
					t.Errorf("client %d: read from %s %s: %q, %v; want %q", i, network, to, b, err, want)
				}
				_ = c.Close()
			}
		}
		for _, own := range []netip.Addr{a4, a6} {
			if _, err := n.Ping(briefly(t), own); err != nil {
				t.Errorf("client %d: the ping to %v failed: %v", i, own, err)
			}
			c, err := n.DialContext(briefly(t), "tcp", netip.AddrPortFrom(own, 80).String())
			if err != nil {
				t.Errorf("client %d cannot connect: %v", i, err)
				continue
			}
			if b, err := io.ReadAll(c); string(b) != "own" {
				t.Errorf("client %d: read from the gateway's own listener: %q, %v; want \"own\"", i, b, err)
			}
			_ = c.Close()
			if _, err := n.DialContext(briefly(t), "tcp", netip.AddrPortFrom(own, 81).String()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("client %d: the dial to a closed port of the gateway returned %v, want ECONNREFUSED", i, err)
			}
		}
	}
	c, err := g.DialContext(briefly(t), "tcp", "10.8.0.1:80") // the gateway reaches itself
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if s := g.Stats(); s != (Stats{Memory: s.Memory}) {
		t.Errorf("the Stats are %+v, want no drops", s)
	}
}

// TestForwardBulk checks that a forwarded connection carries bulk data in both directions.
func TestForwardBulk(t *testing.T) {
	g := newGateway(t, Config{Forward: func(f *Flow) {
		if c, err := f.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}})
	for _, far := range []netip.Addr{far4, far6} {
		c, err := g.clients[0].DialTCP(briefly(t), netip.AddrPort{}, netip.AddrPortFrom(far, 7))
		if err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		go func() {
			_, _ = c.Write(data)
			_ = c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%v: %d bytes came back, %v; want the same %d bytes", far, len(got), err, len(data))
		}
		_ = c.Close()
	}
}

// TestForwardRefuse checks that a client gets the right error for each Refusal of a TCP connection, a UDP flow and a ping.
func TestForwardRefuse(t *testing.T) {
	var refusal atomic.Uint32
	g := newGateway(t, Config{Forward: func(f *Flow) {
		how := Refusal(refusal.Load())
		if err := f.Refuse(how); err != nil {
			t.Error(err)
		}
		if err := f.Refuse(how); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a second decision returned %v, want net.ErrClosed", err)
		}
	}})
	for _, c := range []struct {
		how            Refusal
		tcp, udp, ping error
	}{
		{PortUnreachable, syscall.ECONNREFUSED, syscall.ECONNREFUSED, syscall.EHOSTUNREACH},
		{HostUnreachable, syscall.EHOSTUNREACH, syscall.EHOSTUNREACH, syscall.EHOSTUNREACH},
		{NetUnreachable, syscall.ENETUNREACH, syscall.ENETUNREACH, syscall.ENETUNREACH},
		{Prohibited, syscall.EHOSTUNREACH, syscall.EHOSTUNREACH, syscall.EHOSTUNREACH},
	} {
		how := c.how
		refusal.Store(uint32(how))
		for _, far := range []netip.Addr{far4, far6} {
			n := g.clients[0]
			if _, err := n.DialTCP(briefly(t), netip.AddrPort{}, netip.AddrPortFrom(far, 80)); !errors.Is(err, c.tcp) {
				t.Errorf("refusal %d of TCP to %v: %v, want %v", how, far, err, c.tcp)
			}
			if _, err := n.Ping(briefly(t), far); !errors.Is(err, c.ping) {
				t.Errorf("refusal %d of a ping to %v: %v, want %v", how, far, err, c.ping)
			}
			if how != PortUnreachable {
				continue // gVisor reports to the client's UDP socket only that a port is unreachable
			}
			u, err := n.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(far, 53))
			if err != nil {
				t.Fatal(err)
			}
			_ = u.SetDeadline(time.Now().Add(30 * time.Second))
			_, _ = u.Write([]byte("x"))
			if _, err := u.Read(make([]byte, 1)); !errors.Is(err, c.udp) {
				t.Errorf("refusal %d of UDP to %v: %v, want %v", how, far, err, c.udp)
			}
			_ = u.Close()
		}
	}
}

// TestForwardDiscard checks that a flow gets no answer if the program discards it or does not decide about it.
func TestForwardDiscard(t *testing.T) {
	g := newGateway(t, Config{Forward: func(f *Flow) {
		if f.Destination().Port() == 81 {
			f.Discard()
		}
	}})
	var answers int
	g.lose(func([]byte) bool { answers++; return false })
	for _, port := range []uint16{80, 81} {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if _, err := g.clients[0].DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(far4, port)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the dial to port %d returned %v, want a timeout", port, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := g.clients[0].Ping(ctx, far6); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the ping returned %v, want a timeout", err)
	}
	g.lose(nil)
	if answers != 0 {
		t.Errorf("the client got %d packets, want none", answers)
	}
	g.settles(t, func(n flowCounts) bool { return n == flowCounts{} })
}

type flowCounts struct{ flows, pending, all, datagrams, sources int }

func (g *gateway) counts() flowCounts {
	fw := g.link.forward
	fw.mu.Lock()
	defer fw.mu.Unlock()
	return flowCounts{len(fw.flows), fw.pending.total, fw.all.total, fw.waiting.total, len(fw.sources)}
}

// TestForwardSlow checks that a slow decision delays no other flow, and that the Net answers the peer's SYN only after the
// decision.
func TestForwardSlow(t *testing.T) {
	decide := make(chan struct{})
	g := newGateway(t, Config{Forward: func(f *Flow) {
		if f.Destination().Port() == 80 {
			<-decide
		}
		if c, err := f.Accept(); err == nil {
			_ = c.Close()
		}
	}})
	n := g.clients[0]
	result := make(chan error, 20)
	for range cap(result) {
		go func() {
			c, err := n.DialTCP(briefly(t), netip.AddrPort{}, netip.AddrPortFrom(far4, 80))
			if err == nil {
				_ = c.Close()
			}
			result <- err
		}()
	}
	for range 20 {
		c, err := n.DialTCP(briefly(t), netip.AddrPort{}, netip.AddrPortFrom(far4, 81))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	select {
	case err := <-result:
		t.Fatalf("a dial returned before the decision, with the error %v", err)
	default:
	}
	close(decide)
	for range cap(result) {
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
}

// TestForwardConfig checks that New rejects wrong values of Config.Forwarding.
func TestForwardConfig(t *testing.T) {
	for _, c := range []struct {
		f    Forwarding
		on   bool
		want string
	}{
		{Forwarding{Pending: -1}, true, "Forwarding.Pending is -1"},
		{Forwarding{Flows: -1}, true, "Forwarding.Flows is -1"},
		{Forwarding{UDPIdle: time.Minute}, true, "Forwarding.UDPIdle is 1m0s"},
		{Forwarding{Pending: 1}, false, "without Config.Forward"},
	} {
		config := Config{Addresses: []netip.Addr{a4}, Forwarding: c.f}
		if c.on {
			config.Forward = func(*Flow) {}
		}
		if _, err := New(config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("New with %+v returned the error %v, want %q in it", c.f, err, c.want)
		}
	}
}

// TestStackOptions checks that Config.Stack changes the options of the Net's own stack.
func TestStackOptions(t *testing.T) {
	n := newNet(t, Config{Addresses: []netip.Addr{a4}, Stack: func(o *stack.Options) { o.HandleLocal = false }})
	if n.Stack().HandleLocal() {
		t.Error("HandleLocal is true although Config.Stack has set it to false")
	}
}
