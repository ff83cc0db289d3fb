package gateway_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/gateway"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

// TestGreedyTCP checks that after one peer has opened as many connections as it can, another peer can still open 50.
func TestGreedyTCP(t *testing.T) {
	w := newWorld(t, gateway.Config{Policy: toLoopback, Flows: 200})
	port := echo(t)
	open := 0
	for range 250 {
		if _, err := w.dial(t, 0, netip.AddrPortFrom(far, port)); err == nil {
			open++
		} else if !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Fatalf("after %d connections, a dial returned %v, want %v", open, err, syscall.EHOSTUNREACH)
		}
	}
	if open != 100 {
		t.Errorf("one peer has %d connections, want 100, half of all flows", open)
	}
	for range 50 {
		must(w.dial(t, 1, netip.AddrPortFrom(far, port)))(t)
	}
}

// TestFlowLimits checks Limits.Flows with one peer and Limits.NewFlows with the other. Neither limit affects the other peer.
func TestFlowLimits(t *testing.T) {
	w := newWorld(t, gateway.Config{Policy: toLoopback, Limits: gateway.Limits{Flows: 3}})
	port := echo(t)
	w.SetLimits(w.keys[1], gateway.Limits{NewFlows: 1})
	for i, want := range []int{3, 2} {
		open, begun := 0, time.Now()
		for range 4 {
			if _, err := w.dial(t, i, netip.AddrPortFrom(far, port)); err == nil {
				open++
			}
		}
		most := want
		if i == 1 { // on a slow machine, the bucket has gained tokens since the test began
			most += int(time.Since(begun).Seconds())
		}
		if open < want || open > most {
			t.Errorf("peer %d opened %d connections, want %d", i, open, want)
		}
	}
}

// TestRates checks the limit of bytes per second in each direction.
func TestRates(t *testing.T) {
	const rate = 1 << 20
	for _, l := range []gateway.Limits{{FromPeer: rate}, {ToPeer: rate}} {
		w := newWorld(t, gateway.Config{Policy: toLoopback, Limits: l})
		c := must(w.dial(t, 0, netip.AddrPortFrom(far, echo(t))))(t)
		begun := time.Now()
		go func() { _, _ = c.Write(make([]byte, rate/2)) }()
		if _, err := io.ReadFull(c, make([]byte, rate/2)); err != nil {
			t.Fatal(err)
		}
		// The burst, which is as many bytes as the rate permits in 0.1 s, passes at once. The gateway reads the last chunk
		// before the tokens for it exist.
		if took := time.Since(begun); took < 250*time.Millisecond {
			t.Errorf("%+v: the bytes of half a second passed in %v, want at least 250 ms", l, took)
		}
	}
}

// TestQuota checks that a peer whose quota is used up loses its connection, and cannot open another one until SetLimits grants a
// larger quota.
func TestQuota(t *testing.T) {
	w := newWorld(t, gateway.Config{Policy: toLoopback, Limits: gateway.Limits{Quota: 100_000}})
	to := netip.AddrPortFrom(far, serve(t, func(c net.Conn) {
		if _, err := c.Read(make([]byte, 1)); err == nil { // if the server sent at once, the reset could make the dial fail
			_, _ = c.Write(make([]byte, 1<<20))
		}
	}))
	c := must(w.dial(t, 0, to))(t)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection ended after %d bytes with %v, want %v", n, err, syscall.ECONNRESET)
	}
	if _, err := w.dial(t, 0, to); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("a dial of a peer whose quota is used up returned %v, want %v", err, syscall.EHOSTUNREACH)
	}
	must(w.dial(t, 1, to))(t)
	w.SetLimits(w.keys[0], gateway.Limits{Quota: 1 << 30})
	must(w.dial(t, 0, to))(t)
}

// TestFlood begins 10,000 UDP flows of one peer, each from another port and to another address. It checks that the flooding
// peer gets at most half of the flows, and that another peer can still open connections. With GATEWAY_FLOWS=100000 in the
// environment, it begins 100,000 flows, which takes 4 s.
func TestFlood(t *testing.T) {
	w := newWorld(t, gateway.Config{Policy: toLoopback, Flows: 200, Limits: gateway.Limits{NewFlows: -1}})
	sink, port := host(t, "127.0.0.1:0"), echo(t)
	n := 10_000
	if s := os.Getenv("GATEWAY_FLOWS"); s != "" {
		n = must(strconv.Atoi(s))(t)
	}
	for i := range n {
		p := make([]byte, 20+8)
		packet.PutIP(p, len(p), addrs[0], netip.AddrFrom4([4]byte{203, byte(i >> 16), byte(i >> 8), byte(i)}), 17, 0)
		p[20], p[21] = byte((1024+i%60000)>>8), byte(1024+i%60000)
		p[22], p[23] = byte(portOf(sink)>>8), byte(portOf(sink))
		p[25] = 8 // the length of the datagram; a checksum of zero means that there is none
		if _, err := w.stack.WritePackets([][]byte{p}); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 {
			if got := w.Stats()[w.keys[0]].Flows; got > 100 {
				t.Fatalf("one peer has %d flows, want at most half of 200", got)
			}
		}
	}
	for range 20 {
		c := must(w.dial(t, 1, netip.AddrPortFrom(far, port)))(t)
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Errorf("the second peer got no echo during the flood: %v", err)
		}
	}
	eventually(t, "the first peer has at least 64 flows", func() bool { return w.Stats()[w.keys[0]].Flows >= 64 })
}

// TestDebtOfResetFlows checks that connections that the peer resets while they wait for tokens give these tokens back, so that
// the peer's next connection need not wait for bytes that nobody received.
func TestDebtOfResetFlows(t *testing.T) {
	w := newWorld(t, gateway.Config{Policy: toLoopback, Limits: gateway.Limits{ToPeer: 100_000}})
	endless := netip.AddrPortFrom(far, serve(t, func(c net.Conn) {
		for b := make([]byte, 64<<10); ; {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}))
	short := netip.AddrPortFrom(far, serve(t, func(c net.Conn) { _, _ = c.Write(make([]byte, 1000)) }))
	var conns []net.Conn
	for range 30 {
		c := must(w.dial(t, 0, endless))(t)
		_ = c.(interface{ SetLinger(int) error }).SetLinger(0) // Close sends a reset
		conns = append(conns, c)
	}
	owed := uint64(20 * 32 << 10) // 30 connections wait for up to 32 KiB each
	eventually(t, "the connections wait", func() bool { return w.Stats()[w.keys[0]].ToPeer > owed })
	for _, c := range conns {
		_ = c.Close()
	}
	eventually(t, "the connections end", func() bool { return w.Stats()[w.keys[0]].Flows == 0 })
	if n := w.Stats()[w.keys[0]].ToPeer; n > owed/2 {
		t.Errorf("%d bytes were counted as received by the peer, want at most %d", n, owed/2)
	}
	c := must(w.dial(t, 0, short))(t)
	begun := time.Now()
	if _, err := io.ReadFull(c, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("a new connection waited for %v, want at most 2 s", took)
	}
}

// TestIdleBehindRate checks that a connection that waits because of the peer's rate is not idle.
func TestIdleBehindRate(t *testing.T) {
	const size = 60_000 // 32 KiB wait for 3 s
	w := newWorld(t, gateway.Config{Policy: toLoopback, TCPIdle: time.Second, Limits: gateway.Limits{ToPeer: 10_000}})
	c := must(w.dial(t, 0, netip.AddrPortFrom(far, serve(t, func(c net.Conn) { _, _ = c.Write(make([]byte, size)) }))))(t)
	if n, err := io.Copy(io.Discard, c); n != size || err != nil {
		t.Errorf("the peer received %d bytes and then %v, want all %d", n, err, size)
	}
}

// TestForgetWhilePolicyDecides checks that Forget keeps the account of a peer for whose flow the policy has not decided yet.
func TestForgetWhilePolicyDecides(t *testing.T) {
	asked, decide := make(chan bool, 1), make(chan bool)
	w := newWorld(t, gateway.Config{Limits: gateway.Limits{Flows: 1}, Policy: func(r gateway.Request) gateway.Verdict {
		select {
		case asked <- true:
			<-decide
		default:
		}
		return toLoopback(r)
	}})
	to := netip.AddrPortFrom(far, echo(t))
	first := make(chan error, 1)
	go func() { _, err := w.dial(t, 0, to); first <- err }()
	<-asked
	if w.Forget(w.keys[0]) {
		t.Error("Forget dropped the account of a peer whose flow waits for the policy")
	}
	close(decide)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if _, err := w.dial(t, 0, to); err == nil {
		t.Error("the peer has two connections, want at most Limits.Flows = 1")
	}
}

type failingSocket struct{ *net.UDPConn }

func (failingSocket) WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error) {
	return 0, syscall.ENETUNREACH
}

// TestUnsentDatagrams checks that datagrams that could not be sent are dropped and do not count as the peer's bytes.
func TestUnsentDatagrams(t *testing.T) {
	w := newWorld(t, gateway.Config{Policy: toLoopback, ListenPacket: func(context.Context, string, string) (net.PacketConn, error) {
		c, err := net.ListenUDP("udp4", nil)
		return failingSocket{c}, err
	}})
	send(t, w.socket(t, 0), "lost", netip.AddrPortFrom(far, 99))
	eventually(t, "the datagram is dropped", func() bool { return w.Stats()[w.keys[0]].Dropped == 1 })
	if n := w.Stats()[w.keys[0]].FromPeer; n != 0 {
		t.Errorf("the peer has sent %d bytes, want 0, because nothing was sent", n)
	}
}
