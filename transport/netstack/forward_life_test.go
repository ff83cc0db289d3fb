package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// manyFlows is how many flows one peer opens in TestForwardFlood: more than its share, which is half of defaultFlows.
var manyFlows = 100_000

func init() {
	if testkit.Race {
		manyFlows = 40_000 // the race detector takes 0.2 ms per flow
	}
}

// floodPacket returns a packet that begins flow i of client 0: a SYN if syn is set, and otherwise a datagram.
func floodPacket(i int, syn bool) []byte {
	const l3 = 20
	n, proto := 12, byte(protoUDP)
	if syn {
		n, proto = 20, protoTCP
	}
	p := make([]byte, l3+n)
	packet.PutIP(p, len(p), clientAddrs[0][0], netip.AddrFrom4([4]byte{203, byte(i >> 16), byte(i >> 8), byte(i)}), proto, 0)
	binary.BigEndian.PutUint16(p[l3:], uint16(1024+i%60000))
	binary.BigEndian.PutUint16(p[l3+2:], 53)
	if syn {
		p[l3+12], p[l3+13] = 5<<4, 2
		binary.BigEndian.PutUint16(p[l3+14:], 1000)
		mendSums(p, l3)
	} else {
		binary.BigEndian.PutUint16(p[l3+4:], 12) // the checksum stays 0, which means that there is none
	}
	return p
}

// TestForwardFlood lets one peer open as many flows as it can, and checks that another peer can still open flows. In three
// cases, the flows of the first peer wait for the program's decision, wait for the end of TCP's handshake, or are accepted.
func TestForwardFlood(t *testing.T) {
	for _, c := range []struct {
		name      string
		hold, syn bool // hold: the program does not decide about the first peer's flows
	}{{"undecided", true, false}, {"half-open", false, true}, {"accepted", false, false}} {
		t.Run(c.name, func(t *testing.T) {
			release := make(chan struct{})
			answer := answering(t)
			var g *gateway
			g = newGateway(t, Config{Forward: func(f *Flow) {
				switch {
				case f.Peer() != g.keys[0]:
					answer(f)
				case c.hold:
					<-release
					f.Discard()
				default:
					if _, err := f.Accept(); err != nil && !errors.Is(err, net.ErrClosed) && !c.syn {
						t.Error(err)
					}
				}
			}})
			g.lose(func(p []byte) bool { // the first client does not answer, not even with a reset
				_, dst := addressesOf(p)
				return dst == clientAddrs[0][0]
			})
			for i := range manyFlows {
				if _, err := g.WritePackets([][]byte{floodPacket(i, c.syn)}); err != nil {
					t.Fatal(err)
				}
			}
			const half = defaultPending / 2
			n, filled := g.counts(), c.hold || c.syn
			if n.pending > half || filled && n.pending != half {
				t.Errorf("one peer has %d pending flows, want half of %d", n.pending, defaultPending)
			}
			if limit := defaultFlows / 2; n.all > limit {
				t.Errorf("one peer has %d flows, want at most %d", n.all, limit)
			}
			if n := g.Stats().FlowsDropped; filled && n != uint64(manyFlows-half) {
				t.Errorf("Stats.FlowsDropped is %d, want the %d packets without a place", n, manyFlows-half)
			}
			for range 20 {
				conn, err := g.clients[1].DialTCP(briefly(t), netip.AddrPort{}, netip.AddrPortFrom(far4, 80))
				if err != nil {
					t.Fatalf("the second peer cannot connect: %v", err)
				}
				_ = conn.CloseWrite()
				if _, err := io.ReadAll(conn); err != nil {
					t.Errorf("the second peer's connection failed: %v", err)
				}
				_ = conn.Close()
			}
			close(release)
			if err := g.Close(); err != nil { // ends the accepted flows too
				t.Fatal(err)
			}
		})
	}
}

// TestForwardWaitingBound checks that one peer's large datagrams that wait for decisions take at most half of the memory for
// such datagrams, and that another peer can still open flows.
func TestForwardWaitingBound(t *testing.T) {
	release := make(chan struct{})
	answer := answering(t)
	var g *gateway
	g = newGateway(t, Config{Forward: func(f *Flow) {
		if f.Peer() == g.keys[0] {
			<-release
			f.Discard()
			return
		}
		answer(f)
	}})
	c, err := g.clients[0].ListenPacket("udp", ":5000")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for port := 1; port <= 300; port++ {
		if _, err := c.WriteTo(make([]byte, 60_000), net.UDPAddrFromAddrPort(netip.AddrPortFrom(far4, uint16(port)))); err != nil {
			t.Fatal(err)
		}
	}
	if held := g.counts().datagrams; held < maxWaiting/4 || held > maxWaiting/2+2*60_000 {
		t.Errorf("%d bytes wait for decisions, want about half of %d", held, maxWaiting)
	}
	if g.Stats().DatagramsDropped == 0 {
		t.Error("Stats.DatagramsDropped is 0, want more")
	}
	u, err := g.clients[1].DialUDP(netip.AddrPort{}, netip.AddrPortFrom(far4, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	_ = u.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := u.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Read(make([]byte, 200)); err != nil {
		t.Errorf("the second peer got no answer: %v", err)
	}
	close(release)
	for deadline := time.Now().Add(30 * time.Second); g.counts().pending > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("flows are still pending 30 s after the decisions")
		}
	}
	if held := g.counts().datagrams; held != 0 {
		t.Errorf("%d bytes still wait after the decisions, want 0", held)
	}
}

// sweep calls Flow.sweep for all flows with the time now, as the forwarder's sweep does.
func (g *gateway) sweep(now time.Time) {
	fw := g.link.forward
	fw.mu.Lock()
	var fs []*Flow
	for _, f := range fw.flows {
		fs = append(fs, f)
	}
	fw.mu.Unlock()
	for _, f := range fs {
		f.sweep(now)
	}
}

// TestForwardIdle checks that a UDP flow ends if it carries no datagram for Forwarding.UDPIdle, and that a flow that
// carries datagrams does not end.
func TestForwardIdle(t *testing.T) {
	conns := make(chan net.Conn, 1)
	g := newGateway(t, Config{Forward: func(f *Flow) {
		if c, err := f.Accept(); err != nil {
			t.Error(err)
		} else {
			conns <- c
		}
	}})
	g.link.forward.mu.Lock()
	g.link.forward.armed = true // no timer starts; the test calls sweep instead
	g.link.forward.mu.Unlock()
	defer func() {
		g.link.forward.mu.Lock()
		g.link.forward.armed = false
		g.link.forward.mu.Unlock()
	}()
	c, err := g.clients[0].DialUDP(netip.AddrPort{}, netip.AddrPortFrom(far4, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	accepted := <-conns
	now := time.Now()
	g.sweep(now)
	g.sweep(now.Add(defaultUDPIdle - time.Second))
	if _, err := c.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	g.sweep(now.Add(defaultUDPIdle))
	b := make([]byte, 10)
	for range 2 {
		if _, err := accepted.Read(b); err != nil {
			t.Fatalf("the flow was closed although it carried datagrams: %v", err)
		}
	}
	g.sweep(now.Add(2*defaultUDPIdle + time.Second))
	if _, err := accepted.Read(b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after %v of silence: %v, want net.ErrClosed", defaultUDPIdle, err)
	}
	g.sweep(now.Add(2*defaultUDPIdle + 2*time.Second))
	if n := g.counts(); n != (flowCounts{}) {
		t.Errorf("the counts of flows are %+v, want all 0", n)
	}
}

// TestForwardMoved checks that a flow ends when its source's address moves to another peer. If the program has not decided yet, the
// flow's context ends; otherwise the connection is reset.
func TestForwardMoved(t *testing.T) {
	for _, undecided := range []bool{true, false} {
		ends, conns := make(chan error, 1), make(chan net.Conn, 1)
		g := newGateway(t, Config{Forward: func(f *Flow) {
			if undecided {
				conns <- nil
				<-f.Context().Done()
				ends <- context.Cause(f.Context())
				return
			}
			c, err := f.Accept()
			if err != nil {
				t.Error(err)
			}
			conns <- c
			_, err = c.Read(make([]byte, 1))
			ends <- err
			_ = c.Close()
		}})
		go func() {
			if c, err := g.clients[0].DialTCP(briefly(t), netip.AddrPort{}, netip.AddrPortFrom(far4, 80)); err == nil {
				_, _ = io.ReadAll(c)
				_ = c.Close()
			}
		}()
		<-conns
		g.route(clientAddrs[0][0], 1)
		if err := <-ends; err == nil {
			t.Errorf("undecided %t: the error is nil, want the reason why the flow ended", undecided)
		}
		g.route(clientAddrs[0][0], 0)
		_ = g.clients[0].Close() // ends the client's dial
	}
}

// TestForwardGivenUp checks that the flow's context ends when the peer resets its connection before the decision.
func TestForwardGivenUp(t *testing.T) {
	begun, ends := make(chan struct{}), make(chan error, 1)
	g := newGateway(t, Config{Forward: func(f *Flow) {
		close(begun)
		<-f.Context().Done()
		ends <- context.Cause(f.Context())
		if _, err := f.Accept(); err == nil {
			t.Error("Accept succeeded after the peer had reset the connection")
		}
	}})
	p := floodPacket(0, true)
	if _, err := g.WritePackets([][]byte{p}); err != nil {
		t.Fatal(err)
	}
	<-begun
	p[20+13] = 4 // RST
	mendSums(p, 20)
	if _, err := g.WritePackets([][]byte{p}); err != nil {
		t.Fatal(err)
	}
	if err := <-ends; err != errFlowReset {
		t.Errorf("the flow's context ended with the cause %v, want %v", err, errFlowReset)
	}
}

// TestForwardClose checks that Close ends flows in every state, and waits for the methods that are making a decision. TestMain
// looks for leftover goroutines.
func TestForwardClose(t *testing.T) {
	var working sync.WaitGroup
	working.Add(50)
	begun := make(chan struct{}, 50)
	g := newGateway(t, Config{Forward: func(f *Flow) {
		defer working.Done()
		switch f.Destination().Port() {
		case 1: // no decision
			begun <- struct{}{}
			<-f.Context().Done()
		case 2: // accepted, and never closed
			c, err := f.Accept()
			if err != nil {
				t.Error(err)
			}
			begun <- struct{}{}
			_, _ = c.Read(make([]byte, 1))
			_, _ = c.Read(make([]byte, 1))
		case 3: // accepted with AcceptSource
			s, _, err := f.AcceptSource()
			if err != nil {
				t.Error(err)
			}
			begun <- struct{}{}
			for err == nil {
				_, _, err = s.ReadTo(make([]byte, 1))
			}
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("ReadTo of a source failed with %v, want net.ErrClosed", err)
			}
		}
	}})
	for i := range uint16(10) {
		go func() {
			_, _ = g.clients[0].DialTCP(briefly(t), netip.AddrPort{}, netip.AddrPortFrom(far4, 1))
		}()
		go func() {
			_, _ = g.clients[0].DialTCP(briefly(t), netip.AddrPort{}, netip.AddrPortFrom(far4, 2))
		}()
		for port := uint16(1); port <= 3; port++ {
			c, err := g.clients[0].DialUDP(netip.AddrPortFrom(clientAddrs[0][0], 1000+10*i+port), netip.AddrPortFrom(far4, port))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 50 {
		<-begun
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	working.Wait()
	g.settles(t, func(n flowCounts) bool { return n.pending == 0 })
}

// settles waits until ok returns true for the numbers of flows that g.counts returns.
func (g *gateway) settles(t *testing.T, ok func(flowCounts) bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(g.counts()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the counts of flows are still %+v after 30 s", g.counts())
		}
	}
}

// TestForwardRepeated checks that repeated SYNs of flows leave no flow behind if the program does not decide about the flows.
func TestForwardRepeated(t *testing.T) {
	g := newGateway(t, Config{Forward: func(*Flow) {}})
	for i := range 100_000 {
		if _, err := g.WritePackets([][]byte{floodPacket(i%3, true)}); err != nil {
			t.Fatal(err)
		}
	}
	g.settles(t, func(n flowCounts) bool { return n == flowCounts{} })
}
