package netstack

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"testing"
	"time"
)

// A small window of the peer is raised to what was sent, at most to a full segment. It is never lowered, a closed one stays closed,
// and that of a connection whose SYN was not seen stays as it is.
func TestSmallWindowHoldsWhatWasSent(t *testing.T) {
	f := handFlows["IPv4"]
	const first, scale, mtu = 1000, 9, 1380 // a full segment has 1,340 bytes
	for _, c := range []struct {
		name         string
		sent, ack    uint32
		window, want uint16
		unknown      bool
	}{
		{"nothing sent", 0, first, 2, 2, false},
		{"all acknowledged", 1340, first + 1340, 2, 2, false},
		{"fits", 1000, first, 2, 2, false},
		{"does not fit", 1340, first, 2, 3, false},
		{"more than a segment", 9000, first, 1, 3, false},
		{"in part acknowledged", 9000, first + 8300, 1, 2, false},
		{"larger", 1340, first, 10, 10, false},
		{"closed", 1340, first, 0, 0, false},
		{"without a SYN", 1340, first, 2, 2, true},
		{"an impossible number", 1340, first + 2000, 2, 2, false},
	} {
		w := new(windows)
		w.setMTU(mtu)
		in := func(s segment) segment {
			p := s.packet()
			l3, l4, _ := tcpHeaders(p)
			w.inbound(p, l3, l4)
			s, _ = parseSegment(p)
			return s
		}
		if !c.unknown {
			in(segment{from: f[1], to: f[0], flags: flagSYN, options: []byte{1, 3, 3, scale}})
		}
		var h heard
		w.heard.add(&h, flowBetween(f[0], f[1]))
		if c.sent > 0 {
			h.send(first + c.sent)
			h.send(first + 1) // sent again: the farthest byte counts
		}
		answer := segment{from: f[1], to: f[0], ack: c.ack, flags: flagACK, window: c.window}
		if s := in(answer); s.window != c.want || s.ack != c.ack {
			t.Errorf("%s: window %d and acknowledgement %d, want %d and %d", c.name, s.window, s.ack, c.want, c.ack)
		}
		if w.heard.remove(&h); len(w.heard.conns) != 0 {
			t.Errorf("%s: a closed connection is remembered", c.name)
		}
		if s := in(answer); s.window != c.window {
			t.Errorf("%s: the window of a closed connection became %d", c.name, s.window)
		}
	}
}

// handConnection returns a connection between a peer, whose end is c, and a Net, whose end is s.
func handConnection(t *testing.T) (c *handConn, s *TCPConn) {
	t.Helper()
	n, h := byHand(t)
	h.sack = true
	l, err := n.ListenTCP(netip.AddrPortFrom(a4, 80))
	if err != nil {
		t.Fatal(err)
	}
	c = h.connect(t, netip.AddrPortFrom(b4, 4000), netip.AddrPortFrom(a4, 80))
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s = accepted.(*TCPConn)
	_ = s.SetDeadline(time.Now().Add(time.Minute))
	return c, s
}

// The last segment is lost, and the peer's window has become smaller than it. The Net sends it again.
func TestLostSegmentInSmallWindow(t *testing.T) {
	c, s := handConnection(t)
	if _, err := s.Write(make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
	last := c.h.want(t, "2,000 bytes", func(s segment) bool { return c.mine(s) && s.seq+uint32(len(s.payload)) == c.ack+2000 })
	c.ack, c.window = last.seq, 100
	c.h.write(t, c.segment(flagACK, nil).packet())
	c.h.want(t, "the lost segment again", func(s segment) bool { return c.mine(s) && s.seq == last.seq && len(s.payload) > 0 })
}

// A program makes a receive buffer smaller than the out-of-order segments in it. The missing segment still gets in.
func TestSmallerBufferWithGap(t *testing.T) {
	c, s := handConnection(t)
	const gap, rest = 1000, 60_000
	first := c.segment(flagACK, make([]byte, gap))
	c.next += gap
	c.send(t, rest)
	end := binary.BigEndian.AppendUint32(nil, c.next)
	c.h.want(t, "a selective acknowledgement of all", func(s segment) bool { return c.mine(s) && s.ack == first.seq && bytes.Contains(s.options, end) })
	if err := s.SetReadBuffer(8 << 10); err != nil {
		t.Fatal(err)
	}
	c.h.write(t, first.packet())
	if n, err := io.CopyN(io.Discard, s, gap+rest); err != nil {
		t.Fatalf("after %d bytes: %v", n, err)
	}
}

// An old acknowledgement gets the window of the newest one, whether that is larger or smaller.
func TestOldAcknowledgementHasNoWindow(t *testing.T) {
	f := handFlows["IPv6"]
	w := new(windows)
	var h heard
	w.heard.add(&h, flowBetween(f[0], f[1]))
	const first = 0xffff_f000 // the numbers pass 0
	for i, c := range []struct {
		ack          uint32
		window, want uint16
	}{
		{0, 500, 500}, {5000, 400, 400}, {1000, 9000, 400}, {4999, 0, 400}, {5000, 450, 450}, {5000, 0, 0}, {4000, 300, 0}, {5001, 7, 7},
	} {
		p := segment{from: f[1], to: f[0], ack: first + c.ack, flags: flagACK, window: c.window}.packet()
		l3, l4, _ := tcpHeaders(p)
		w.inbound(p, l3, l4)
		if s, _ := parseSegment(p); s.window != c.want {
			t.Errorf("%d: the window %d for byte %d became %d, want %d", i, c.window, c.ack, s.window, c.want)
		}
	}
}
