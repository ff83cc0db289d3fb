package netstack

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"os"
	"testing"
	"time"
)

// arrive passes a segment of the peer through w, and returns the segment as w has changed it.
func arrive(w *windows, s segment) segment {
	p := s.packet()
	l3, l4, _ := tcpHeaders(p)
	w.inbound(p, l3, l4)
	s, _ = parseSegment(p)
	return s
}

// TestSmallWindowHoldsWhatWasSent checks that a small window of the peer is raised to the number of bytes in flight, but at most to
// a full segment. A window is never lowered, and a closed window stays closed. If the Net has not seen the SYN of a connection,
// it does not change the connection's windows.
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
		{"the bytes in flight fit", 1000, first, 2, 2, false},
		{"the bytes in flight do not fit", 1340, first, 2, 3, false},
		{"more than a segment in flight", 9000, first, 1, 3, false},
		{"partly acknowledged", 9000, first + 8300, 1, 2, false},
		{"large window", 1340, first, 10, 10, false},
		{"closed window", 1340, first, 0, 0, false},
		{"without a SYN", 1340, first, 2, 2, true},
		{"acknowledgement of unsent bytes", 1340, first + 2000, 2, 2, false},
	} {
		w := new(windows)
		w.setMTU(mtu)
		if !c.unknown {
			arrive(w, segment{from: f[1], to: f[0], flags: flagSYN, options: []byte{1, 3, 3, scale}})
		}
		var h heard
		w.heard.add(&h, flowBetween(f[0], f[1]))
		if c.sent > 0 {
			h.send(first, first+c.sent)
			h.send(first, first+1) // sends the first byte again, which does not lower the highest number sent
		}
		answer := segment{from: f[1], to: f[0], ack: c.ack, flags: flagACK, window: c.window}
		if s := arrive(w, answer); s.window != c.want || s.ack != c.ack {
			t.Errorf("%s: the segment has the window %d and the acknowledgement number %d, want %d and %d", c.name, s.window, s.ack, c.want, c.ack)
		}
		if w.heard.remove(&h); len(w.heard.conns) != 0 {
			t.Errorf("%s: the table still has the connection after remove", c.name)
		}
		if s := arrive(w, answer); s.window != c.window {
			t.Errorf("%s: after remove, a window of the connection was changed to %d", c.name, s.window)
		}
	}
}

// TestLostSegmentInSmallWindow loses the last segment while the peer's window becomes smaller than that segment. The Net must
// still send the segment again.
func TestLostSegmentInSmallWindow(t *testing.T) {
	c, s := accepted(t, handFlows["IPv4"][0], handFlows["IPv4"][1])
	_ = s.SetDeadline(time.Now().Add(time.Minute))
	if _, err := s.Write(make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
	last := c.h.want(t, "2,000 bytes", func(s segment) bool { return c.mine(s) && s.seq+uint32(len(s.payload)) == c.ack+2000 })
	c.ack, c.window = last.seq, 100
	c.h.write(t, c.segment(flagACK, nil).packet())
	c.h.want(t, "the lost segment again", func(s segment) bool { return c.mine(s) && s.seq == last.seq && len(s.payload) > 0 })
}

// TestSmallerBufferWithGap makes a receive buffer smaller than the out-of-order segments in it. The Net must still accept the
// missing segment.
func TestSmallerBufferWithGap(t *testing.T) {
	c, s := accepted(t, handFlows["IPv4"][0], handFlows["IPv4"][1])
	_ = s.SetDeadline(time.Now().Add(time.Minute))
	const gap, rest = 1000, 60_000
	first := c.segment(flagACK, make([]byte, gap))
	c.next += gap
	c.send(t, rest)
	end := binary.BigEndian.AppendUint32(nil, c.next)
	c.h.want(t, "a selective acknowledgement of all out-of-order segments", func(s segment) bool { return c.mine(s) && s.ack == first.seq && bytes.Contains(s.options, end) })
	if err := s.SetReadBuffer(8 << 10); err != nil {
		t.Fatal(err)
	}
	c.h.write(t, first.packet())
	if n, err := io.CopyN(io.Discard, s, gap+rest); err != nil {
		t.Fatalf("reading failed after %d bytes: %v", n, err)
	}
}

// TestOldAcknowledgementHasNoWindow checks that an old acknowledgement gets the window of the newest one, even if its own
// window is larger or smaller. An acknowledgement of bytes that were never sent does not count as the newest.
func TestOldAcknowledgementHasNoWindow(t *testing.T) {
	f := handFlows["IPv6"]
	w := new(windows)
	var h heard
	w.heard.add(&h, flowBetween(f[0], f[1]))
	const first, sent = 0xffff_f000, 6000 // the sequence numbers wrap around
	h.send(first&(1<<32-1), (first+sent)&(1<<32-1))
	for i, c := range []struct {
		ack          uint32
		window, want uint16
	}{
		{0, 500, 500}, {5000, 400, 400}, {1000, 9000, 400}, {4999, 0, 400}, {5000, 450, 450}, {5000, 0, 0}, {4000, 300, 0}, {5001, 7, 7},
		{sent + 2, 3, 3}, {1 << 30, 0, 0}, {5001, 900, 900}, {5000, 4, 900},
		{sent + 1, 800, 800}, {sent, 900, 800}, // the peer acknowledges a FIN
	} {
		if s := arrive(w, segment{from: f[1], to: f[0], ack: first + c.ack, flags: flagACK, window: c.window}); s.window != c.want {
			t.Errorf("case %d: the window %d in the acknowledgement of byte %d became %d, want %d", i, c.window, c.ack, s.window, c.want)
		}
	}
}

// TestScalesBound checks that a connection keeps its window scale while another host sends many SYNs, and that these SYNs add no
// connection to the table.
func TestScalesBound(t *testing.T) {
	f := handFlows["IPv4"]
	w := new(windows)
	w.setMTU(1380)
	syn := func(from netip.AddrPort, scale byte) {
		arrive(w, segment{from: from, to: f[0], flags: flagSYN, options: []byte{1, 3, 3, scale}})
	}
	syn(f[1], 9)
	var h heard
	w.heard.add(&h, flowBetween(f[0], f[1]))
	h.send(1000, 2000)
	for i := range 20 * maxScales {
		syn(netip.AddrPortFrom(b4, uint16(i)), 3)
	}
	if s := arrive(w, segment{from: f[1], to: f[0], ack: 1000, flags: flagACK, window: 1}); s.window != 2 {
		t.Errorf("after other SYNs, the window 1 of the first connection became %d, want 2", s.window)
	}
	if n := len(w.heard.conns); n != 1 {
		t.Errorf("the SYNs of the other host added %d connections to the table, want 0", n-1)
	}
}

// TestGapAfterEarlyData completes a handshake with data. Later, out-of-order segments fill the smallest buffer. The Net must
// still accept the missing segment.
func TestGapAfterEarlyData(t *testing.T) {
	const early = waitingRecv/2 - 96 // nearly what the window allows
	for size := 500; size <= 1400; size += 100 {
		c, s := acceptedWith(t, handFlows["IPv4"][0], handFlows["IPv4"][1], make([]byte, early))
		if err := s.SetReadBuffer(1); err != nil {
			t.Fatal(err)
		}
		// The acknowledgement of this byte shows the Net that no gap needs the larger buffer from before.
		c.send(t, 1)
		c.h.want(t, "an acknowledgement", func(s segment) bool { return c.mine(s) && s.ack == c.next })
		if _, err := io.CopyN(io.Discard, s, early+1); err != nil {
			t.Fatal(err)
		}
		first := c.segment(flagACK, make([]byte, size))
		c.next += uint32(size)
		for range minReadBuffer / size {
			c.send(t, size) // gVisor drops segments that would fill more than three quarters of the buffer
		}
		b, got, err := make([]byte, size), 0, os.ErrDeadlineExceeded
		for tries := 0; err != nil && tries < 40; tries++ { // gVisor may drop this segment too, until it has handled all others
			c.h.write(t, first.packet())
			_ = s.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			var n int
			n, err = io.ReadFull(s, b[got:])
			got += n
		}
		if err != nil {
			t.Errorf("of the missing segment of %d bytes, the program read only %d: %v", size, got, err)
		}
	}
}

// TestReplacedConnection replaces a connection by another one with the same addresses and ports, before the program has closed
// the first.
func TestReplacedConnection(t *testing.T) {
	f := flowBetween(handFlows["IPv4"][0], handFlows["IPv4"][1])
	var conns heardConns
	var before, after heard
	before.long.Store(newLongPath(newLink(1420, nil), 0))
	conns.add(&before, f)
	if conns.of(f) != &before {
		t.Fatal("the table does not find the first connection")
	}
	if conns.add(&after, f); conns.of(f) != &after || before.long.Load() != nil {
		t.Error("the table does not find the new connection, or the replaced one still has a longPath")
	}
	if conns.remove(&before); conns.of(f) != &after {
		t.Error("after the replaced connection was removed, the table does not find the new one")
	}
	if conns.remove(&after); conns.of(f) != nil {
		t.Error("the table finds a connection that was removed")
	}
}

// TestForgedAcknowledgement checks that a segment does not change what the Net has noted about the connection if gVisor does not
// accept its sequence number, or if the segment is a reset.
func TestForgedAcknowledgement(t *testing.T) {
	f := handFlows["IPv4"]
	w := new(windows)
	w.setMTU(1380)
	arrive(w, segment{from: f[1], to: f[0], flags: flagSYN, options: []byte{1, 3, 3, 4}})
	var h heard
	w.heard.add(&h, flowBetween(f[0], f[1]))
	h.acked.Store(5000)
	h.send(1000, 9000)
	for _, c := range []struct {
		seq    uint32
		flags  uint8
		data   int
		counts bool
	}{
		{5000 + 1<<30, flagACK, 0, false}, {5000 + maxWindow + 1, flagACK, 0, false}, {0xffff_0000 - 1<<20, flagACK, 0, false},
		{5000, flagACK | flagRST, 0, false}, {4999, flagACK, 0, false}, {4999, flagACK | flagFIN, 0, false}, {4000, flagACK, 1000, false}, {4000, flagACK, 2000, true},
		{5000, flagACK, 0, true}, {5000 + 1<<20, flagACK, 0, true},
	} {
		h.last.Store(0)
		arrive(w, segment{from: f[1], to: f[0], seq: c.seq, ack: 4000, flags: c.flags, window: 500, payload: make([]byte, c.data)})
		if counts := h.last.Load() != 0; counts != c.counts {
			t.Errorf("%+v: the acknowledgement counts: %v, want the opposite", c, counts)
		}
	}
}
