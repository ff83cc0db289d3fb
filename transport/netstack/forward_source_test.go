package netstack

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

// sourced returns a Forward that accepts the source of each UDP flow, and sends each UDPSource to sources once.
func sourced(t testing.TB, sources chan *UDPSource) func(*Flow) {
	return func(f *Flow) {
		s, began, err := f.AcceptSource()
		if err != nil {
			t.Error(err)
			return
		}
		if began {
			sources <- s
		}
	}
}

// relay sends a datagram from c to far and checks that s reads it. Then s answers with far as the source address, and relay checks
// that c reads the answer.
func relay(t *testing.T, c net.PacketConn, s *UDPSource, far netip.AddrPort, text []byte) {
	t.Helper()
	if _, err := c.WriteTo(text, net.UDPAddrFromAddrPort(far)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	n, to, err := s.ReadTo(b)
	if err != nil || to != far || !bytes.Equal(b[:n], text) {
		t.Fatalf("the source read %d bytes for %v, %v; want %d for %v", n, to, err, len(text), far)
	}
	answer := append([]byte("as "), text...)
	if n, err := s.WriteFrom(answer, far); n != len(answer) || err != nil {
		t.Fatal("bytes written by WriteFrom, and the error:", n, err)
	}
	n, from, err := c.ReadFrom(b)
	if err != nil || from.String() != far.String() || !bytes.Equal(b[:n], answer) {
		t.Fatalf("the client read %d bytes from %v, %v; want %d from %v", n, from, err, len(answer), far)
	}
}

// TestUDPSource checks that one socket behind a peer is one UDPSource, whatever the destinations of its datagrams, and that
// datagrams of any size pass in both directions.
func TestUDPSource(t *testing.T) {
	sources := make(chan *UDPSource, 8)
	g := newGateway(t, Config{Forward: sourced(t, sources)})
	for i, far := range []netip.Addr{far4, far6} {
		c, err := g.clients[0].ListenPacket("udp", net.JoinHostPort(clientAddrs[0][i].String(), "5000"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteTo([]byte("first"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(far, 53))); err != nil {
			t.Fatal(err)
		}
		s := <-sources
		if err := s.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		if n, to, err := s.ReadTo(b); err != nil || to != netip.AddrPortFrom(far, 53) || string(b[:n]) != "first" {
			t.Fatalf("the source read %q for %v, %v; want the datagram that began the flow", b[:n], to, err)
		}
		if want := netip.AddrPortFrom(clientAddrs[0][i], 5000); s.Source() != want || s.Peer() != g.keys[0] {
			t.Errorf("the source is %v of peer %v, want %v of %v", s.Source(), s.Peer(), want, g.keys[0])
		}
		for port := range uint16(20) {
			relay(t, c, s, netip.AddrPortFrom(far, 1000+port), fmt.Append(nil, "to port ", port))
		}
		for _, size := range []int{0, 1, 1372, 1373, 1392, 1393, 3001, 65000} { // some fit into one packet, some need fragments
			relay(t, c, s, netip.AddrPortFrom(far.Next(), 53), bytes.Repeat([]byte{byte(size)}, size))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a second Close returned %v, want net.ErrClosed", err)
		}
		if _, _, err := s.ReadTo(b); !errors.Is(err, net.ErrClosed) {
			t.Errorf("ReadTo after Close returned %v, want net.ErrClosed", err)
		}
		if _, err := s.WriteFrom(b, netip.AddrPortFrom(far, 53)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("WriteFrom after Close returned %v, want net.ErrClosed", err)
		}
		if _, err := c.WriteTo([]byte("anew"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(far, 53))); err != nil {
			t.Fatal(err)
		}
		anew := <-sources
		if n, _, err := anew.ReadTo(b); err != nil || string(b[:n]) != "anew" {
			t.Errorf("the new source after Close read %q, %v; want \"anew\"", b[:n], err)
		}
		if err := anew.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := g.counts(); n != (flowCounts{}) {
		t.Errorf("the counts of flows are %+v, want all 0", n)
	}
	if len(sources) != 0 {
		t.Errorf("%d more sources exist, want one per socket before Close and one after it", len(sources))
	}
}

// TestUDPSourceErrors checks that a program can report to the socket behind a source that a destination is unreachable, and that
// the source reports to the program that the socket no longer exists.
func TestUDPSourceErrors(t *testing.T) {
	sources := make(chan *UDPSource, 8)
	g := newGateway(t, Config{Forward: sourced(t, sources)})
	for _, far := range []netip.Addr{far4, far6} {
		dst := netip.AddrPortFrom(far, 53)
		c, err := g.clients[0].DialUDP(netip.AddrPort{}, dst)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		s := <-sources
		if err := s.Refuse(dst, PortUnreachable); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		if _, err := c.Read(b); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the client that sent to %v read with the error %v, want ECONNREFUSED", far, err)
		}
		if _, _, err := s.ReadTo(b); err != nil {
			t.Fatal(err)
		}

		for _, from := range []netip.AddrPort{{}, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 1), netip.AddrPortFrom(a4, 1), netip.AddrPortFrom(a6, 1)} {
			if _, err := s.WriteFrom(b, from); err == nil {
				t.Errorf("WriteFrom sent from %v, which is not the address of another host", from)
			}
		}
		if _, err := s.WriteFrom(make([]byte, 65536), dst); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("WriteFrom of 65,536 bytes returned %v, want EMSGSIZE", err)
		}

		if err := s.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.ReadTo(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("ReadTo without a datagram returned %v, want os.ErrDeadlineExceeded", err)
		}
		if err := s.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}

		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.WriteFrom([]byte("nobody is there"), dst); err != nil {
			t.Fatal(err)
		}
		_, _, err = s.ReadTo(b)
		var e *net.OpError
		if !errors.Is(err, syscall.ECONNREFUSED) || !errors.As(err, &e) || e.Addr.String() != dst.String() {
			t.Errorf("ReadTo after the socket was closed returned %v, want ECONNREFUSED about %v", err, dst)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestUDPSourceForged checks that a peer cannot end the source of another peer with an ICMP error about that source.
func TestUDPSourceForged(t *testing.T) {
	sources := make(chan *UDPSource, 1)
	g := newGateway(t, Config{Forward: sourced(t, sources)})
	for i, far := range []netip.Addr{far4, far6} {
		src, dst := netip.AddrPortFrom(clientAddrs[0][i], 5000), netip.AddrPortFrom(far, 53)
		if _, err := g.WritePackets([][]byte{udpPacket(src, dst, "question")}); err != nil {
			t.Fatal(err)
		}
		s := <-sources
		_ = s.SetReadDeadline(time.Now().Add(30 * time.Second))
		b := make([]byte, 100)
		if _, _, err := s.ReadTo(b); err != nil {
			t.Fatal(err)
		}
		proto, kind, code := byte(protoICMP4), byte(3), byte(3)
		if far.Is6() {
			proto, kind, code = protoICMP6, 1, 4
		}
		before := g.Stats().Forged
		forge := func(from netip.Addr) {
			quote := append([]byte{kind, code, 0, 0, 0, 0, 0, 0}, udpPacket(dst, src, "answer")...)
			if _, err := g.WritePackets([][]byte{ipPacket(from, far, proto, quote...)}); err != nil {
				t.Fatal(err)
			}
		}
		forge(clientAddrs[1][i])
		for deadline := time.Now().Add(30 * time.Second); g.Stats().Forged == before; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("Stats.Forged did not count the other peer's ICMP error within 30 s")
			}
		}
		if _, err := g.WritePackets([][]byte{udpPacket(src, dst, "another")}); err != nil {
			t.Fatal(err)
		}
		if n, _, err := s.ReadTo(b); string(b[:n]) != "another" || err != nil {
			t.Errorf("after another peer's ICMP error, the source read %q, %v; want \"another\"", b[:n], err)
		}
		forge(clientAddrs[0][i])
		if _, _, err := s.ReadTo(b); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after its own peer's ICMP error, the source read with the error %v, want ECONNREFUSED", err)
		}
	}
}

// TestUDPSourceBound checks that if a program does not read from a source, only the newest datagrams of that source are dropped
// and counted.
func TestUDPSourceBound(t *testing.T) {
	sources := make(chan *UDPSource, 8)
	g := newGateway(t, Config{Forward: sourced(t, sources)})
	dst := net.UDPAddrFromAddrPort(netip.AddrPortFrom(far4, 53))
	var ends [2]net.PacketConn
	var far [2]*UDPSource
	for i := range ends {
		c, err := g.clients[i].ListenPacket("udp", ":5000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.WriteTo([]byte("first"), dst); err != nil {
			t.Fatal(err)
		}
		ends[i], far[i] = c, <-sources
	}
	for range 1000 {
		if _, err := ends[0].WriteTo(make([]byte, 1000), dst); err != nil {
			t.Fatal(err)
		}
	}
	if held := g.counts().datagrams; held > 2*maxSourceBytes {
		t.Errorf("%d bytes wait, want at most about %d for one source, and one datagram more", held, maxSourceBytes)
	}
	if n := g.Stats().DatagramsDropped; n == 0 {
		t.Error("Stats.DatagramsDropped is 0, want more")
	}
	b := make([]byte, 2000)
	if n, _, err := far[1].ReadTo(b); err != nil || string(b[:n]) != "first" {
		t.Fatalf("the other peer's source read %q, %v; want \"first\"", b[:n], err)
	}
	_ = far[1].SetReadDeadline(time.Now().Add(30 * time.Second))
	_ = ends[1].SetDeadline(time.Now().Add(30 * time.Second))
	relay(t, ends[1], far[1], netip.AddrPortFrom(far4, 54), []byte("still here"))
}

// TestUDPSourceWaitReadable checks that WaitReadable waits for a datagram or an error, which ReadTo then returns. It also checks
// that WaitReadable leaves the notification to a goroutine in ReadTo, and that a deadline and Close end WaitReadable.
func TestUDPSourceWaitReadable(t *testing.T) {
	sources := make(chan *UDPSource, 1)
	g := newGateway(t, Config{Forward: sourced(t, sources)})
	c, err := g.clients[0].ListenPacket("udp", ":5000")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send := func(text string) {
		t.Helper()
		if _, err := c.WriteTo([]byte(text), net.UDPAddrFromAddrPort(netip.AddrPortFrom(far4, 53))); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 100)
	want := func(s *UDPSource, text string) {
		t.Helper()
		if n, _, err := s.ReadTo(b); err != nil || string(b[:n]) != text {
			t.Fatalf("ReadTo returned %q, %v; want %q", b[:n], err, text)
		}
	}
	send("first")
	s := <-sources
	for range 2 { // WaitReadable reads nothing
		if err := s.WaitReadable(); err != nil {
			t.Fatal(err)
		}
	}
	want(s, "first")

	waits := make(chan error, 1)
	wait := func() {
		t.Helper()
		go func() { waits <- s.WaitReadable() }()
		select {
		case err := <-waits:
			t.Fatalf("WaitReadable returned %v before a datagram arrived", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	wait()
	send("second")
	if err := <-waits; err != nil {
		t.Fatal(err)
	}
	want(s, "second")

	reads := make(chan error, 1)
	for range 20 { // ReadTo gets the datagram, whether ReadTo or WaitReadable receives the notification
		_ = s.SetReadDeadline(time.Now().Add(20 * time.Second))
		wait()
		go func() {
			_, _, err := s.ReadTo(b)
			reads <- err
		}()
		time.Sleep(time.Millisecond)
		send("for ReadTo")
		if err := <-reads; err != nil {
			t.Fatalf("ReadTo failed while WaitReadable was also waiting: %v", err)
		}
		_ = s.SetReadDeadline(time.Now().Add(-time.Second)) // ends WaitReadable if ReadTo has read the datagram first
		<-waits
	}

	_ = s.SetReadDeadline(time.Now().Add(-time.Second))
	if err := s.WaitReadable(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("WaitReadable after the deadline returned %v, want os.ErrDeadlineExceeded", err)
	}
	_ = s.SetReadDeadline(time.Time{})
	wait()
	s.Close()
	if err := <-waits; !errors.Is(err, net.ErrClosed) {
		t.Errorf("WaitReadable returned %v after Close, want net.ErrClosed", err)
	}
}
