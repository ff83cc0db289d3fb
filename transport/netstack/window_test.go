package netstack

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// handFlows contains, for each family, the two addresses of a connection: the peer's and the Net's.
var handFlows = map[string][2]netip.AddrPort{
	"IPv4": {netip.AddrPortFrom(b4, 4000), netip.AddrPortFrom(a4, 7)},
	"IPv6": {netip.AddrPortFrom(b6, 4000), netip.AddrPortFrom(a6, 7)},
}

// accepted makes a connection from a handPeer to a Net. It returns the peer's end and the Net's end.
func accepted(t *testing.T, own, to netip.AddrPort) (*handConn, *TCPConn) {
	t.Helper()
	return acceptedWith(t, own, to, nil)
}

// acceptedWith is like accepted, but the segment that completes the handshake carries the data early.
func acceptedWith(t *testing.T, own, to netip.AddrPort, early []byte) (*handConn, *TCPConn) {
	t.Helper()
	n, h := byHand(t)
	h.early = early
	l, err := n.Listen("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	c := h.connect(t, own, to)
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return c, s.(*TCPConn)
}

// TestAckBeyondClosedWindow runs a server that does not read until its write has returned. The peer fills the server's window and
// sends more bytes, which the Net drops. Then the peer acknowledges the bytes that the server wrote. The sequence number of that
// acknowledgement lies beyond the closed window, but the Net must accept the acknowledgement.
func TestAckBeyondClosedWindow(t *testing.T) {
	for name, f := range handFlows {
		t.Run(name, func(t *testing.T) {
			c, s := accepted(t, f[0], f[1])
			if err := s.SetReadBuffer(64 << 10); err != nil {
				t.Fatal(err)
			}
			const total = 200_000
			written := make(chan error, 1)
			go func() {
				_, err := s.Write(make([]byte, total))
				written <- err
			}()
			// The peer does not acknowledge data yet, and fills the server's window.
			first := c.h.want(t, "data", func(s segment) bool { return c.mine(s) && len(s.payload) > 0 })
			for a := c.h.want(t, "an acknowledgement", c.mine); a.window != 0; {
				if a.ack == c.next {
					c.send(t, min(5000, int(a.window)<<c.scale))
				}
				a = c.h.want(t, "an acknowledgement of all bytes", func(s segment) bool { return c.mine(s) && s.ack == c.next })
			}
			c.send(t, 3000) // the Net drops these bytes, because the window is closed
			// The test acts as if the peer had sent 16 MiB more and all of them had been lost. Fewer bytes would not suffice: the
			// read buffer was larger at first, and gVisor still accepts sequence numbers up to the right edge of that time.
			c.next += 16 << 20
			got := first.seq
			for end := first.seq + total; got != end; {
				// Acknowledge all bytes that have arrived.
				s := c.h.want(t, "the next bytes that the server wrote", func(s segment) bool {
					return c.mine(s) && s.seq+uint32(len(s.payload)) != got && int32(s.seq-got) <= 0 && int32(s.seq+uint32(len(s.payload))-got) > 0
				})
				if s.window != 0 {
					t.Fatalf("the server's window is open, want it closed: %v", s)
				}
				got = s.seq + uint32(len(s.payload))
				c.ack = got
				c.h.write(t, c.segment(flagACK, nil).packet())
			}
			select {
			case err := <-written:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(30 * time.Second):
				t.Error("the server's write did not end, although the peer acknowledged everything")
			}
		})
	}
}

// TestAckToClosedWindow lets a peer close its window at a number below bytes that the Net has already sent. After a reordered
// acknowledgement, it looks to the Net as if the peer had done that. The peer then accepts only the sequence number that it expects
// next. The test checks that the Net's acknowledgements without data carry that number.
func TestAckToClosedWindow(t *testing.T) {
	for name, f := range handFlows {
		t.Run(name, func(t *testing.T) {
			c, s := accepted(t, f[0], f[1])
			if _, err := s.Write(make([]byte, 5000)); err != nil {
				t.Fatal(err)
			}
			next := c.ack
			for next != c.ack+5000 {
				s := c.h.want(t, "5,000 bytes", func(s segment) bool { return c.mine(s) && s.seq == next && len(s.payload) > 0 })
				next += uint32(len(s.payload))
			}
			ackOf := func(what string, seq uint32) {
				t.Helper()
				c.send(t, 1000)
				c.send(t, 1000) // gVisor acknowledges a second segment without a delay
				a := c.h.want(t, what, func(s segment) bool { return c.mine(s) && len(s.payload) == 0 && s.ack == c.next })
				if a.seq != seq {
					t.Errorf("%s has the sequence number %d, want %d, both relative to the next byte of the Net", what, int32(a.seq-next), int32(seq-next))
				}
			}
			ackOf("an acknowledgement with an open window", next)
			c.ack, c.window = next-3000, 0
			ackOf("an acknowledgement with the window closed", next-3000)
			stale := c.segment(flagACK, nil)
			stale.ack, stale.window = next-4000, 65535
			c.h.write(t, stale.packet())
			ackOf("an acknowledgement after an old one", next-3000)
			c.window = 65535
			ackOf("an acknowledgement with the window open again", next)
		})
	}
}

// TestWindowKeepsItsEdge simulates a receiver that computes windows as gVisor does, and a peer that fills the announced windows.
// It checks that the peer may never send beyond the right edge up to which the receiver accepts bytes.
func TestWindowKeepsItsEdge(t *testing.T) {
	shrunk := 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		scale := r.IntN(12)
		next := uint32(r.Uint64())
		edge := next + 1 + r.Uint32N(1<<20) // gVisor's exact right edge, which never moves back
		// told is the farthest right edge that was announced to the peer; was is the farthest edge that the peer would know if w
		// changed nothing.
		told, was := next, next
		w := new(windows)
		for range 200 {
			window := min((edge-next)>>scale, 65535)
			if accepts := next + window<<scale; int32(told-accepts) > 0 {
				t.Fatalf("seed %d: the peer may send %d bytes beyond what gVisor accepts", seed, told-accepts)
			} else if int32(was-accepts) > 0 {
				shrunk++
			}
			h := segment{from: handFlows["IPv4"][0], to: handFlows["IPv4"][1], ack: next, flags: flagACK, window: uint16(window)}.packet()
			w.outbound(h, packet.IP4Header, true)
			s, _ := parseSegment(h)
			if s.ack != next {
				t.Fatal("outbound changed the acknowledgement number")
			}
			forward := func(edge *uint32, to uint32) {
				if int32(to-*edge) > 0 {
					*edge = to
				}
			}
			forward(&told, next+uint32(s.window)<<scale)
			forward(&was, next+window<<scale)
			if told != next {
				next += 1 + r.Uint32N(told-next) // some of the bytes that the peer may send arrive
			}
			if r.IntN(3) == 0 {
				edge += r.Uint32N(1 << 16) // the program reads some bytes
			}
		}
	}
	if shrunk == 0 {
		t.Error("without lower windows, the right edge never moved back, so the test proves nothing")
	}
}

// TestLowerSYN checks that lowerSYN lowers the window of a SYN by one unit, and changes no other packets.
func TestLowerSYN(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 4000 {
		f := handFlows["IPv4"]
		if i%2 == 1 {
			f = handFlows["IPv6"]
		}
		scale := uint8(r.IntN(15))
		s := segment{
			from: f[0], to: f[1], seq: r.Uint32(), ack: r.Uint32(), flags: flagSYN | uint8(r.IntN(256)), window: uint16(r.Uint32()),
			options: [][]byte{nil, {1, 3, 3, scale}, {2, 4, 5, 5, 1, 3, 3, scale}, {1, 3, 9, scale}}[i/2%4],
		}
		want := s.window
		if len(s.options) > 0 && s.options[2] != 9 && scale > 0 {
			want = uint16(max(int(want)-1<<scale, 0))
		}
		p := s.packet()
		lowerSYN(p)
		got, ok := parseSegment(p)
		if !ok || got.window != want {
			t.Fatalf("%v, options %x: lowerSYN made the window %d, want %d", s, s.options, got.window, want)
		}
		l3 := len(p) - packet.TCPHeader - len(s.options)
		if packet.TransportSum(p, l3) != 0xffff {
			t.Fatalf("%v: the checksum after lowerSYN is wrong", s)
		}
	}
	for name, p := range map[string][]byte{
		"a fragment":      fragment(segment{from: handFlows["IPv4"][0], to: handFlows["IPv4"][1], flags: flagSYN, window: 999, options: []byte{1, 3, 3, 5}}.packet()),
		"another segment": segment{from: handFlows["IPv4"][0], to: handFlows["IPv4"][1], flags: flagACK, window: 999, options: []byte{1, 3, 3, 5}}.packet(),
		"nothing":         nil,
	} {
		was := string(p)
		if lowerSYN(p); string(p) != was {
			t.Errorf("lowerSYN changed %s", name)
		}
	}
}

// fragment marks the IPv4 packet p as the first fragment of a longer packet.
func fragment(p []byte) []byte {
	p[6] = 0x20
	return p
}

// numberedFlow returns a different connection for each i.
func numberedFlow(i int) (f flow) {
	binary.BigEndian.PutUint64(f[16:], uint64(i))
	return f
}

// clipped returns the sequence number to which clip changes n for the connection f.
func (c *closedWindows) clipped(f flow, n uint32) uint32 {
	b := binary.BigEndian.AppendUint32(nil, n)
	c.clip(f, b)
	return binary.BigEndian.Uint32(b)
}

// TestClosedWindows checks how open, close and forget change the entries, and what clip makes of sequence numbers.
func TestClosedWindows(t *testing.T) {
	var c closedWindows
	f, g := numberedFlow(1), numberedFlow(2)
	want := func(what string, f flow, seq, clipped uint32, used int32) {
		t.Helper()
		if got := c.clipped(f, seq); got != clipped {
			t.Errorf("%s: clip made %d into %d, want %d", what, seq, got, clipped)
		}
		if got := c.used.Load(); got != used {
			t.Errorf("%s: %d entries are in use, want %d", what, got, used)
		}
	}
	c.open(f, 1)
	c.forget(f)
	want("a window that was never closed", f, 100, 100, 0)
	c.close(f, 100)
	want("a number beyond the expected one", f, 101, 100, 1)
	want("a number far beyond the expected one", f, 100+1<<31-1, 100, 1)
	want("the expected number", f, 100, 100, 1)
	want("a probe", f, 99, 99, 1)
	want("another connection", g, 200, 200, 1)
	c.open(f, 99)
	want("after an older segment with an open window", f, 200, 100, 1)
	c.close(f, 99)
	want("after an older segment with a closed window", f, 200, 100, 1)
	c.close(f, 150)
	want("after a newer segment with a closed window", f, 200, 150, 1)
	c.open(f, 150)
	want("after a segment that opens the window", f, 200, 200, 0)
	c.close(f, 1<<32-10)
	want("a number beyond the wraparound", f, 5, 1<<32-10, 1)
	c.close(f, 3)
	want("after a segment beyond the wraparound with a closed window", f, 5, 3, 1)
	c.forget(g)
	want("after another connection was forgotten", f, 5, 3, 1)
	c.forget(f)
	want("after the connection was forgotten", f, 5, 5, 0)
}

// TestClosedWindowsBound closes more windows than the table has entries. It checks that a further connection still gets an entry,
// and usually keeps it while a hundred other connections close their windows.
func TestClosedWindowsBound(t *testing.T) {
	var c closedWindows
	for i := range 100_000 {
		c.close(numberedFlow(i), uint32(i))
	}
	if n := c.used.Load(); n > closedSets*closedWays {
		t.Errorf("the table has %d entries in use, want at most %d", n, closedSets*closedWays)
	}
	kept := 0
	for i := range 1000 {
		victim := numberedFlow(1<<29 + i)
		c.close(victim, 500)
		if got := c.clipped(victim, 600); got != 500 {
			t.Fatal("a connection got no entry in a full table")
		}
		for j := range 100 {
			c.close(numberedFlow(1<<30+100*i+j), uint32(j))
		}
		if c.clipped(victim, 600) == 500 {
			kept++
		}
	}
	if kept < 900 {
		t.Errorf("%d of 1000 connections kept their entry while 100 others closed their windows, want at least 900", kept)
	}
	for i := range 100_000 {
		c.forget(numberedFlow(i))
	}
	for i := range 1000 {
		c.forget(numberedFlow(1<<29 + i))
	}
	for i := range 100_000 {
		c.forget(numberedFlow(1<<30 + i))
	}
	if n := c.used.Load(); n != 0 {
		t.Errorf("%d entries are in use after all connections were forgotten, want 0", n)
	}
}

// TestWindowsForget checks that a reset or a SYN removes the entries of a connection.
func TestWindowsForget(t *testing.T) {
	f := handFlows["IPv6"]
	in := func(w *windows, flags uint8, window uint16) {
		p := segment{from: f[0], to: f[1], seq: 7, ack: 9, flags: flags, window: window}.packet()
		w.inbound(p, packet.IP6Header, len(p))
	}
	out := func(w *windows, flags uint8, window uint16) {
		p := segment{from: f[1], to: f[0], seq: 9, ack: 7, flags: flags, window: window}.packet()
		w.outbound(p, packet.IP6Header, true)
	}
	for name, end := range map[string]func(*windows){
		"RST in":      func(w *windows) { in(w, flagRST, 0) },
		"RST-ACK in":  func(w *windows) { in(w, flagRST|flagACK, 0) },
		"SYN in":      func(w *windows) { in(w, flagSYN, 1000) },
		"SYN-ACK in":  func(w *windows) { in(w, flagSYN|flagACK, 0) },
		"RST-ACK out": func(w *windows) { out(w, flagRST|flagACK, 0) },
	} {
		w := new(windows)
		in(w, flagACK, 0)
		out(w, flagACK|flagPSH, 1) // outbound lowers this window to 0
		if w.own.none() || w.peer.none() {
			t.Fatal("the tables have no entry for a closed window")
		}
		if end(w); !w.own.none() || !w.peer.none() {
			t.Errorf("%s: the connection still has an entry", name)
		}
	}
}

func TestWindowsAllocate(t *testing.T) {
	if testkit.Race {
		t.Skip("the race detector allocates")
	}
	f := handFlows["IPv4"]
	w := new(windows)
	for _, window := range []uint16{65535, 0} {
		p := segment{from: f[0], to: f[1], flags: flagACK, window: window}.packet()
		q := segment{from: f[1], to: f[0], flags: flagACK, window: window}.packet()
		w.inbound(p, packet.IP4Header, len(p)) // the first closed window allocates the table
		w.outbound(q, packet.IP4Header, true)
		n := testing.AllocsPerRun(100, func() {
			w.inbound(p, packet.IP4Header, len(p))
			w.outbound(q, packet.IP4Header, true)
		})
		if n != 0 {
			t.Errorf("with a window of %d: %v allocations per pair of segments, want 0", window, n)
		}
	}
}

// TestSmallestBuffer checks that data still arrives with the smallest read buffer that a Net allows. The window must stay open
// although the Net lowers it by one unit.
func TestSmallestBuffer(t *testing.T) {
	a, b := pair(t)
	c, s := connectedTCP(t, a, b, b4)
	if err := s.SetReadBuffer(1); err != nil {
		t.Fatal(err)
	}
	const total = 200_000
	go func() { _, _ = c.Write(make([]byte, total)) }()
	_ = s.SetDeadline(time.Now().Add(30 * time.Second))
	if n, err := io.CopyN(io.Discard, s, total); err != nil {
		t.Errorf("the transfer ended after %d bytes: %v", n, err)
	}
}
