package netstack

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// selective returns a TCP option that acknowledges ranges selectively. For each range, ranges has the sequence number of its first
// byte, and then that of the byte after its last one. padding says how many bytes of padding precede the option, at most two.
func selective(padding int, ranges ...uint32) []byte {
	o := append(make([]byte, 0, 40), []byte{1, 1}[:padding]...)
	o = append(o, 5, byte(2+4*len(ranges)))
	for _, r := range ranges {
		o = binary.BigEndian.AppendUint32(o, r)
	}
	return o
}

// A peer acknowledges ranges selectively. The Net sends each missing segment again with the same bytes. It does so
// at most once per round trip, and only when three later segments have arrived. gVisor's own recovery never begins.
func TestLostSegmentsOnALongPath(t *testing.T) {
	for name, f := range handFlows {
		t.Run(name, func(t *testing.T) {
			c, s := accepted(t, f[0], f[1])
			const trip = 50 * time.Millisecond
			const k = 964 // bytes of payload per segment; gVisor reserves the rest for options
			data := make([]byte, 30_000)
			r := rand.NewChaCha8([32]byte{})
			_, _ = r.Read(data)
			if _, err := s.Write(data); err != nil {
				t.Fatal(err)
			}
			first := c.ack
			at := func(n int) uint32 { return first + uint32(n) }
			// wants fails the test unless the next segment of the Net carries the bytes of data from byte n.
			wants := func(what string, n int) {
				t.Helper()
				s := c.h.want(t, what, func(s segment) bool { return c.mine(s) && len(s.payload) > 0 })
				if s.seq != at(n) || !bytes.Equal(s.payload, data[n:n+len(s.payload)]) {
					t.Fatalf("%s: the Net sent %v from byte %d, want the data from byte %d", what, s, s.seq-first, n)
				}
			}
			nothing := func(what string) {
				t.Helper()
				again := func(s segment) bool { return c.mine(s) && len(s.payload) > 0 && int32(s.seq-at(10*k)) < 0 }
				if s, found := c.h.next(again, trip/10); found {
					t.Fatalf("%s: the Net sent %v, want no segment sent again", what, s)
				}
			}
			ack := func(n int, ranges ...int) {
				s := c.segment(flagACK, nil)
				s.ack = at(n)
				if len(ranges) > 0 {
					var is []uint32
					for _, r := range ranges {
						is = append(is, at(r))
					}
					s.options = selective(2, is...)
				}
				c.h.write(t, s.packet())
			}
			for n := range 10 {
				wants("the initial window", n*k)
			}
			time.Sleep(trip)
			ack(k)
			wants("new data", 10*k)
			wants("new data", 11*k)
			ack(k, 2*k, 4*k)
			nothing("only two segments arrived after the missing one")
			ack(k, 2*k, 5*k)
			wants("the missing segment", k)
			ack(k, 2*k, 6*k)
			ack(k, 7*k, 9*k, 2*k, 6*k)
			nothing("the missing segment was sent again less than a round trip ago")
			ack(k, 7*k, 10*k, 2*k, 6*k)
			wants("the second missing segment", 6*k)
			time.Sleep(trip * 3 / 2)
			ack(k, 7*k, 10*k, 2*k, 6*k)
			wants("the first missing segment once more", k)
			wants("the second missing segment once more", 6*k)
			tcp := c.h.n.stack.Stats().TCP
			if n := tcp.SACKRecovery.Value() + tcp.FastRecovery.Value() + tcp.Timeouts.Value(); n > 0 {
				t.Errorf("gVisor's own loss recovery began %d times, want 0", n)
			}
			if n := tcp.Retransmits.Value(); n != 4 {
				t.Errorf("gVisor's statistics count %d retransmissions, want 4", n)
			}
			ack(12 * k)
			wants("new data", 12*k)
		})
	}
}

// A peer repeats an acknowledgement that is not selective. After a round trip, the Net sends the first segment in flight again.
// After each answer to a retransmission, the Net sends the next missing segment again at once, without a timeout.
func TestLostSegmentsWithoutSelection(t *testing.T) {
	c, s := accepted(t, handFlows["IPv4"][0], handFlows["IPv4"][1])
	const k = 964
	if _, err := s.Write(make([]byte, 30*k)); err != nil {
		t.Fatal(err)
	}
	first := c.ack
	data := func(s segment) bool { return c.mine(s) && len(s.payload) > 0 }
	ack := func(n uint32) {
		c.ack = first + n*k
		c.h.write(t, c.segment(flagACK, nil).packet())
	}
	last := func(n uint32) {
		t.Helper()
		c.h.want(t, "the segment with the expected sequence number", func(s segment) bool { return data(s) && s.seq == first+n*k })
	}
	last(9)
	time.Sleep(50 * time.Millisecond)
	ack(1)
	last(11)
	ack(1)
	if s, found := c.h.next(data, 10*time.Millisecond); found {
		t.Fatalf("the Net sent %v at once, want it to wait for a round trip", s)
	}
	last(1)
	time.Sleep(50 * time.Millisecond)
	ack(4)
	last(4)
	time.Sleep(50 * time.Millisecond)
	ack(7)
	last(7)
	tcp := c.h.n.stack.Stats().TCP
	if n := tcp.Timeouts.Value() + tcp.SACKRecovery.Value() + tcp.FastRecovery.Value(); n > 0 {
		t.Errorf("gVisor's own loss recovery began %d times, want 0", n)
	}
}

// A playedPath is a longPath in virtual time. The test calls its methods in place of gVisor and the peer.
type playedPath struct {
	*longPath
	segment uint32 // bytes of each segment
	scale   uint8  // the scale of the peer's windows
}

const playedTrip = 40 * time.Millisecond

// play calls f with a longPath that has sent n segments of 1,000 bytes. The peer has acknowledged the first of them, playedTrip
// after it was sent.
func play(t *testing.T, n int, f func(c *playedPath)) {
	t.Helper()
	playWith(t, playedPath{segment: 1000, scale: 4}, n, f)
}

// playWith is like play, but takes the size of the segments and the scale of the windows from c.
func playWith(t *testing.T, c playedPath, n int, f func(c *playedPath)) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		c.longPath = newLongPath(newLink(1420, nil), 0)
		for range n {
			c.sends(c.segment)
		}
		time.Sleep(playedTrip)
		c.hears(c.segment, 5000, nil)
		f(&c)
		c.close()
	})
}

// sends tells c that gVisor sends n new bytes, in a packet without payload that the link cannot send again.
func (c *playedPath) sends(n uint32) {
	c.sendsFrom(c.sent, n)
}

// sendsFrom tells c that gVisor sends n bytes from the sequence number seq on, in a packet that the link cannot send again. It
// reports whether c says that the packet is needless.
func (c *playedPath) sendsFrom(seq, n uint32) (needless bool) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{})
	defer p.DecRef()
	p.GSOOptions.MSS = uint16(c.segment)
	needless, _ = c.send(p, seq, seq+n, 1<<30)
	return needless
}

// hears passes an acknowledgement of the bytes before n to c, with the given window and options. It returns the header as c has
// changed it, and the verdict.
func (c *playedPath) hears(n uint32, window uint16, options []byte) (tcp []byte, v verdict) {
	tcp = append(make([]byte, 20), options...)
	binary.BigEndian.PutUint32(tcp[tcpAck:], n)
	v = c.hear(tcp, window, c.scale, true)
	return tcp, v
}

// windowOf returns the window in the header of an acknowledgement.
func windowOf(tcp []byte) int { return int(binary.BigEndian.Uint16(tcp[tcpWindow:])) }

// While the link can send missing bytes again, gVisor sees neither the holes nor repeated acknowledgements. Otherwise gVisor sees
// all acknowledgements unchanged.
func TestHiddenHoles(t *testing.T) {
	play(t, 20, func(c *playedPath) {
		tcp, v := c.hears(1000, 5000, selective(2, 2000, 3000))
		if bytes.Contains(tcp, []byte{5, 10}) || !v.drop {
			t.Errorf("gVisor sees the selective acknowledgement: header % x, verdict %+v", tcp, v)
		}
		if tcp, v := c.hears(1000, 6000, selective(0, 2000, 3000)); v.drop || bytes.Contains(tcp, []byte{5, 10}) {
			t.Errorf("gVisor must see the larger window, but no SACK option: header % x, verdict %+v", tcp, v)
		}
		if _, v := c.hears(500, 6000, nil); !v.drop {
			t.Error("gVisor sees an old acknowledgement that reports nothing new")
		}
		// Now bytes 1000 to 1999 count as lost. The link cannot send them again (see playedPath.sends), so gVisor must see the
		// selective acknowledgement.
		if tcp, v := c.hears(1000, 6000, selective(2, 2000, 5000)); !bytes.Contains(tcp, []byte{5, 10}) || v.drop {
			t.Errorf("gVisor does not see the selective acknowledgement of bytes that the link cannot send again: header % x, verdict %+v", tcp, v)
		}
		if _, v := c.hears(5000, 6000, nil); v.drop {
			t.Error("gVisor does not see the acknowledgement that closes the hole")
		}
	})
}

// Selective acknowledgements of impossible ranges, of bytes that were never sent, or of bytes that were already acknowledged
// change nothing.
func TestImpossibleSelectiveAcknowledgements(t *testing.T) {
	play(t, 5, func(c *playedPath) {
		for _, ranges := range [][]uint32{
			{2000, 6000}, {4000, 3000}, {3000, 3000}, {500, 800}, {0xffff_0000, 900}, {900, 0x9000_0000}, {6000, 7000},
		} {
			if _, v := c.hears(1000, 5000, selective(2, ranges...)); c.holes.any() || v.drop {
				t.Errorf("ranges %d: the holes are %v and the verdict is %+v, want no holes and no drop", ranges, c.holes.list, v)
			}
		}
	})
}

// gVisor has sent bytes again, so its congestion window is small. Once all bytes that had been sent by then have arrived,
// the congestion window restarts.
func TestReviveAfterATimeout(t *testing.T) {
	play(t, 10, func(c *playedPath) {
		c.sendsFrom(1000, 1000)
		c.sends(1000)
		if _, v := c.hears(9000, 5000, nil); v.revive {
			t.Error("the congestion window restarts before all bytes have arrived")
		}
		if _, v := c.hears(10_000, 5000, nil); !v.revive {
			t.Error("all bytes have arrived, but the congestion window does not restart")
		}
		if _, v := c.hears(11_000, 5000, nil); v.revive {
			t.Error("the congestion window restarts a second time")
		}
	})
}

// After a timeout, the congestion window grows again as it does in a new connection.
func TestRevivedWindow(t *testing.T) {
	f := handFlows["IPv4"]
	c, s := accepted(t, f[0], f[1])
	if _, err := s.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	first := c.ack
	size := uint32(len(c.h.want(t, "data", func(s segment) bool { return c.mine(s) && len(s.payload) > 0 }).payload))
	time.Sleep(20 * time.Millisecond)
	c.ack = first + size
	c.h.write(t, c.segment(flagACK, nil).packet())
	tcp := c.h.n.stack.Stats().TCP
	testkit.Eventually(t, "gVisor's retransmission timer expires", func() bool { return tcp.Timeouts.Value() > 0 })
	state := func() (info tcpip.TCPInfoOption) {
		_ = s.ep.GetSockOpt(&info)
		return info
	}
	if n := state().SndSsthresh; n > 100 {
		t.Fatalf("after a timeout, slow start ends at a window of %d segments, want at most 100", n)
	}
	c.ack = first + 12*size // acknowledges all bytes that were sent
	c.h.write(t, c.segment(flagACK, nil).packet())
	testkit.Eventually(t, "slow start has no limit again", func() bool { return state().SndSsthresh > 1<<20 })
}

// Small requests make the estimate and the bound small. A small bound never closes the window, even if the window's unit is
// large.
func TestBoundNeverClosesTheWindow(t *testing.T) {
	for scale := range uint8(maxScale + 1) {
		playWith(t, playedPath{segment: 1368, scale: scale}, 1, func(c *playedPath) {
			for i := range 200 {
				if i == 100 {
					c.path.fall()
				}
				c.sends(200)
				time.Sleep(playedTrip)
				if tcp, _ := c.hears(c.sent, 1000, nil); windowOf(tcp)<<scale < min(1000<<scale, leastBound*1368) {
					t.Fatalf("with the window scale %d, the link lowered the window to %d bytes, want at least three full segments", scale, windowOf(tcp)<<scale)
				}
			}
		})
	}
}

// With large packets, one lost segment is not a heavy loss. Even after many falls of the estimate, a full segment still fits into
// the bound.
func TestLargeSegments(t *testing.T) {
	const segment = 8880
	playWith(t, playedPath{segment: segment, scale: 4}, 1, func(c *playedPath) {
		for range 10 {
			c.sends(segment)
			c.sends(segment)
			time.Sleep(playedTrip)
			c.hears(c.sent, 5000, nil)
		}
		if c.path.lose(segment); c.path.settled {
			t.Error("one lost segment made the estimate fall")
		}
		for range 50 {
			c.path.fall()
		}
		if tcp, _ := c.hears(c.sent, 5000, nil); windowOf(tcp)<<4 < leastBound*segment {
			t.Errorf("after 50 falls of the estimate, the window is %d bytes, want at least three full segments", windowOf(tcp)<<4)
		}
	})
}

// After a timeout, gVisor sends several segments again, but the estimate of what the path holds falls only once. A probe of a
// closed window does not lower the estimate.
func TestTimeoutLowersTheBound(t *testing.T) {
	play(t, 10, func(c *playedPath) {
		for range 10 {
			c.sends(1000)
			time.Sleep(playedTrip)
			c.hears(c.sent, 5000, nil)
		}
		c.sends(3000)
		before := c.path.holds
		if c.sendsFrom(c.acked-1, 1); c.path.holds != before || c.resent {
			t.Error("a probe of a closed window counts as a timeout")
		}
		time.Sleep(2 * playedTrip)
		if c.sendsFrom(c.acked, 1000) || c.sendsFrom(c.acked+1000, 1000) {
			t.Error("a segment that gVisor sends again after a timeout counts as needless, although no bytes arrive")
		}
		if c.path.holds != before*7/10 {
			t.Errorf("after a timeout, the estimate is %d, want 7/10 of %d", c.path.holds, before)
		}
	})
}

// gVisor's timeout occurs while bytes still arrive, because the first segment was lost twice. gVisor then needs to send only the
// first segment.
func TestTimeoutWhileBytesArrive(t *testing.T) {
	play(t, 40, func(c *playedPath) {
		for range 10 {
			c.sends(1000)
			time.Sleep(playedTrip)
			c.hears(c.sent-20_000, 5000, nil)
		}
		front, before := c.acked, c.path.holds
		c.hears(front, 5000, selective(2, front+1000, front+2000))
		if c.sendsFrom(front, 1000) {
			t.Error("the first segment counts as needless")
		}
		if !c.sendsFrom(front+1000, 1000) || !c.sendsFrom(front+5000, 1000) {
			t.Error("segments that have arrived or are still in flight do not count as needless")
		}
		c.hears(front, 5000, selective(2, front+1000, front+2000, front+4000, front+9000))
		if c.hides || c.sendsFrom(front+2000, 1000) {
			t.Error("the link still hides the holes, or a missing segment that gVisor sends again counts as needless")
		}
		if c.path.holds != before {
			t.Errorf("the estimate became %d, want it unchanged at %d", c.path.holds, before)
		}
	})
}

// All bytes in flight are lost, or the peer drops bytes that it has acknowledged selectively. After the timeout, gVisor sends all
// these bytes again, even while answers arrive. Only the bytes that the link itself sends again are needless.
func TestTimeoutAfterSilence(t *testing.T) {
	play(t, 100, func(c *playedPath) {
		c.hears(1000, 5000, selective(2, 90_000, 95_000))
		time.Sleep(time.Second)
		if c.sendsFrom(1000, 1000) {
			t.Fatal("the first segment counts as needless")
		}
		if c.hides || c.holes.end != 1000 {
			t.Errorf("after the timeout, the link still hides holes, or bytes up to %d count as arrived, want 1000", c.holes.end)
		}
		time.Sleep(playedTrip)
		c.hears(2000, 5000, nil)
		for seq := uint32(2000); seq < 10_000; seq += 1000 {
			if c.sendsFrom(seq, 1000) {
				t.Errorf("the segment from byte %d counts as needless", seq)
			}
		}
		c.hears(2000, 5000, selective(2, 20_000, 21_000))
		if !c.sendsFrom(10_000, 1000) || c.sendsFrom(21_000, 1000) {
			t.Error("the segment from byte 10,000 must count as needless, because it is in a hole, and the one from byte 21,000 must not")
		}
		time.Sleep(time.Second)
		if c.sendsFrom(c.acked, 1000); c.holes.end != c.acked {
			t.Error("after a second silence, selectively acknowledged bytes still count as arrived")
		}
	})
}

// The segments become smaller, because a packet was too big. gVisor sends the bytes again in smaller segments. Without a
// hole, none of these segments is needless. With a hole, the link itself sends the missing bytes again. So all segments before the
// last byte that has arrived are needless, except for the first.
func TestSmallerSegmentsSentAgain(t *testing.T) {
	for _, hole := range []bool{false, true} {
		play(t, 20, func(c *playedPath) {
			c.sends(1000)
			time.Sleep(playedTrip)
			var options []byte
			end := uint32(5000)
			if hole {
				options, end = selective(2, 6000, 7000), 7000
			}
			c.hears(5000, 5000, options)
			c.segment = 500
			for seq := uint32(5000); seq < 20_000; seq += 500 {
				if needless := c.sendsFrom(seq, 500); needless != (seq > 5000 && seq < end) {
					t.Fatalf("with a hole: %v; the segment from byte %d counts as needless: %v, want the opposite", hole, seq, needless)
				}
			}
		})
	}
}

// After a pause, a packet is too big. gVisor then sends bytes again without a timeout, so the estimate does not fall.
func TestSmallerSegmentsAfterAPause(t *testing.T) {
	play(t, 20, func(c *playedPath) {
		c.sends(1000)
		time.Sleep(playedTrip)
		c.hears(c.sent, 5000, nil)
		before := c.path.holds
		time.Sleep(time.Second)
		c.sends(1000)
		c.segment = 500
		if c.sendsFrom(c.acked, 500); c.silent || c.path.holds != before || before == 0 {
			t.Errorf("after smaller segments were sent again, the estimate is %d, want %d as before", c.path.holds, before)
		}
	})
}

// The peer acknowledges bytes selectively, then nothing arrives for a while, then the peer acknowledges the same bytes again.
// That counts as an arrival of bytes.
func TestBytesArriveAgainAfterSilence(t *testing.T) {
	play(t, 100, func(c *playedPath) {
		c.hears(1000, 5000, selective(2, 2000, 60_000))
		time.Sleep(time.Second)
		c.sendsFrom(1000, 1000)
		time.Sleep(playedTrip)
		c.hears(2000, 5000, nil)
		for i := range uint32(30) {
			time.Sleep(10 * time.Millisecond)
			c.hears(2000, 5000, selective(2, 3000, 4000+1000*i))
		}
		if c.sendsFrom(2000, 1000); c.silent || !c.holes.any() {
			t.Error("a timeout counts as one after silence, although selective acknowledgements have just arrived")
		}
	})
}

// The program closes first its sending half, then the whole connection. The budget gets the memory back as soon as the peer has
// acknowledged all bytes, although the peer does not close its half.
func TestMemoryOfAClosedConnection(t *testing.T) {
	c, s := accepted(t, handFlows["IPv4"][0], handFlows["IPv4"][1])
	if _, err := s.Write(make([]byte, 500)); err != nil {
		t.Fatal(err)
	}
	c.h.want(t, "data", func(s segment) bool { return c.mine(s) && len(s.payload) == 500 })
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.h.want(t, "a FIN", func(s segment) bool { return c.mine(s) && s.flags&flagFIN != 0 })
	counted := func() bool {
		s.memory.budget.mu.Lock()
		defer s.memory.budget.mu.Unlock()
		return s.memory.index >= 0
	}
	if !counted() {
		t.Error("the budget does not count a connection that has unacknowledged bytes")
	}
	c.ack += 501
	c.h.write(t, c.segment(flagACK, nil).packet())
	waitFor(t, func() bool { return !counted() })
}

// gVisor sends a segment that begins before the first byte in flight, because the link saw an acknowledgement that gVisor
// ignored. The segment is not needless.
func TestFrontStraddles(t *testing.T) {
	play(t, 20, func(c *playedPath) {
		c.hears(1500, 5000, selective(2, 3000, 5000))
		if c.sendsFrom(1000, 1000) {
			t.Error("the first segment counts as needless")
		}
	})
}

// Between the acknowledgements of two round trips, nothing arrives for a while. A timeout during that time does not mean that all
// bytes in flight were lost.
func TestGapBetweenRoundTrips(t *testing.T) {
	play(t, 20, func(c *playedPath) {
		const trip = 600 * time.Millisecond
		c.hears(c.sent, 5000, nil)
		for range 10 {
			c.sends(1000)
		}
		time.Sleep(trip)
		c.hears(c.acked, 5000, selective(2, c.acked+1000, c.acked+5000))
		before := c.path.holds
		time.Sleep(trip * 2 / 3)
		if c.sendsFrom(c.acked, 1000); c.path.holds != before || !c.holes.any() {
			t.Errorf("after the gap, the estimate is %d, want %d as before; the holes are %v, want at least one", c.path.holds, before, c.holes.list)
		}
		time.Sleep(trip)
		if c.sendsFrom(c.acked, 1000); c.path.holds == before || c.holes.any() {
			t.Error("a timeout after a round trip without arrivals does not make all bytes in flight count as lost")
		}
	})
}

// A segment that gVisor sends again carries a new acknowledgement. The link must send the segment, because gVisor would not send
// that acknowledgement again.
func TestNeedlessSegmentWithAcknowledgement(t *testing.T) {
	var h heard
	c := newLongPath(newLink(1420, nil), 0)
	defer c.close()
	c.sent, c.resent, c.skips = 10_000, true, true
	h.long.Store(c)
	h.send(0, 10_000)
	note := func(ack uint32) (needless bool) {
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(make([]byte, 1000))})
		defer p.DecRef()
		tcp := make([]byte, 20)
		binary.BigEndian.PutUint32(tcp[tcpSeq:], 2000)
		binary.BigEndian.PutUint32(tcp[tcpAck:], ack)
		tcp[tcpFlags] = flagACK
		return h.note(c.link, p, tcp, func() int64 { return 1 << 30 })
	}
	if note(500) {
		t.Error("a segment with a new acknowledgement counts as needless")
	}
	if !note(500) {
		t.Error("a segment that carries nothing new does not count as needless")
	}
}

// A path drops every packet for a second. After that, the connection recovers in seconds.
func TestInterruptedPath(t *testing.T) {
	conditions := pipe.Conditions{Rate: 12_500_000, Queue: 625_000, Delay: 25 * time.Millisecond}
	a, b, wire := piped(t, conditions)
	l, err := b.Listen("tcp", netip.AddrPortFrom(b4, 7).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(c, zeros{})
		}
	}()
	c, err := a.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	read := func(n int64) (took time.Duration) {
		t.Helper()
		begun := time.Now()
		_ = c.SetDeadline(begun.Add(time.Minute))
		if _, err := io.CopyN(io.Discard, c, n); err != nil {
			t.Fatal(err)
		}
		return time.Since(begun)
	}
	read(15 << 20)
	blocked := conditions
	blocked.Loss = 1
	wire.SetConditions(blocked)
	time.Sleep(time.Second)
	wire.SetConditions(conditions)
	if took := read(10 << 20); took > 6*time.Second {
		t.Errorf("after the interruption, reading 10 MiB took %v, want at most 6 s", took)
	}
}

// More bytes seem to be in flight than the send buffer can hold. The longPath then reports that it is deaf, because it would
// otherwise never release its packets.
func TestDeafPath(t *testing.T) {
	play(t, 1, func(c *playedPath) {
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{})
		defer p.DecRef()
		for range 10 {
			if _, deaf := c.send(p, c.sent, c.sent+1000, 10_000); deaf {
				t.Fatalf("send reports deaf with %d bytes in flight, which the send buffer can hold", c.inFlight())
			}
		}
		if _, deaf := c.send(p, c.sent, c.sent+1000, 10_000); !deaf {
			t.Errorf("send does not report deaf with %d bytes in flight, which the send buffer cannot hold", c.inFlight())
		}
		if !c.isDeaf(10_999) || c.isDeaf(11_000) {
			t.Error("with 11,000 bytes in flight, isDeaf must be true for a buffer of 10,999 bytes, and false for one of 11,000 bytes")
		}
	})
}

// The send buffer becomes smaller than the bytes in it, or the program closes the connection while the buffer holds unsent bytes.
// The connection keeps its longPath.
func TestSmallerSendBuffer(t *testing.T) {
	const k = 964
	isLong := func(t *testing.T, s *TCPConn) {
		t.Helper()
		if s.memory.heard.long.Load() == nil {
			t.Fatal("the connection has no longPath")
		}
	}
	start := func(t *testing.T) (c *handConn, s *TCPConn, ack func(n uint32, window uint16)) {
		c, s = accepted(t, handFlows["IPv4"][0], handFlows["IPv4"][1])
		first := c.ack
		return c, s, func(n uint32, window uint16) {
			t.Helper()
			time.Sleep(20 * time.Millisecond)
			c.ack, c.window = first+n, window
			c.h.write(t, c.segment(flagACK, nil).packet())
			c.h.want(t, "data", func(s segment) bool { return c.mine(s) && s.seq-first >= n && len(s.payload) > 0 })
			isLong(t, s)
		}
	}
	t.Run("SetWriteBuffer", func(t *testing.T) {
		_, s, ack := start(t)
		if _, err := s.Write(make([]byte, 60_000)); err != nil {
			t.Fatal(err)
		}
		if err := s.SetWriteBuffer(4096); err != nil {
			t.Fatal(err)
		}
		ack(10*k, 2*k)
		ack(12*k, 65535)
		ack(14*k, 65535)
	})
	t.Run("Close", func(t *testing.T) {
		_, s, ack := start(t)
		_ = s.SetWriteBuffer(10_000)
		if _, err := s.Write(make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
		_ = s.SetWriteBuffer(60_000)
		if _, err := s.Write(make([]byte, 50_000)); err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		ack(10*k, 65535)
		ack(20*k, 65535)
	})
	t.Run("CloseWrite", func(t *testing.T) {
		_, s, ack := start(t)
		if _, err := s.Write(make([]byte, 60_000)); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		b := s.memory.budget
		reserved := s.memory.send.reserved.Load()
		b.mu.Lock()
		s.memory.shrinkSend(0)
		b.mu.Unlock()
		isLong(t, s)
		if now := s.memory.send.reserved.Load(); now != reserved {
			t.Errorf("the budget counts %d bytes for a full send buffer, want %d as before", now, reserved)
		}
		_ = s.Close()
		ack(10*k, 65535)
		b.mu.Lock()
		defer b.mu.Unlock()
		if s.memory.index < 0 {
			t.Error("the budget has forgotten a connection that still has bytes to send")
		}
	})
}

// A peer sends acknowledgements only behind an extension header, which the link does not parse. The connection works. The
// link ends the longPath, so that it does not keep all packets of the connection.
func TestAcknowledgementsPastTheLink(t *testing.T) {
	c, s := accepted(t, handFlows["IPv6"][0], handFlows["IPv6"][1])
	const total = 8 << 20
	written := make(chan error, 1)
	go func() {
		_, err := s.Write(make([]byte, total))
		written <- err
	}()
	long := func() *longPath { return s.memory.heard.long.Load() }
	held := int64(0)
	for first := c.ack; c.ack != first+total; {
		data := c.h.want(t, "data", func(s segment) bool {
			return c.mine(s) && s.seq+uint32(len(s.payload))-c.ack < 1<<31 && len(s.payload) > 0
		})
		if l := long(); l != nil {
			l.mu.Lock()
			held = max(held, l.inFlight())
			l.mu.Unlock()
		}
		if data.seq != c.ack {
			continue
		}
		c.ack += uint32(len(data.payload))
		c.h.write(t, behindOptions(c.segment(flagACK, nil).packet()))
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if long() != nil || held > total/2 {
		t.Errorf("the link kept %d of %d bytes, want at most half; the connection still has a longPath: %v, want false", held, total, long() != nil)
	}
}

// behindOptions puts an empty destination options header in front of the payload of p, an IPv6 packet.
func behindOptions(p []byte) []byte {
	out := append([]byte(nil), p[:40]...)
	out = append(out, p[6], 0, 1, 4, 0, 0, 0, 0)
	out[6] = 60
	binary.BigEndian.PutUint16(out[4:], uint16(len(p)-40+8))
	return append(out, p[40:]...)
}

// A zeros is an endless reader of zero bytes.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// While the link hides holes from gVisor, gVisor still sees that the peer closes or opens its window.
func TestQuestionsOfThePeer(t *testing.T) {
	play(t, 20, func(c *playedPath) {
		sees := func(window uint16) bool {
			_, v := c.hears(1000, window, selective(2, 2000, 3000))
			return !v.drop
		}
		sees(5000)
		if sees(5000) {
			t.Error("gVisor sees an acknowledgement that reports nothing new")
		}
		for range 2 {
			if !sees(0) {
				t.Error("gVisor does not see that the window is closed")
			}
		}
		if !sees(5000) {
			t.Error("gVisor does not see that the window is open again")
		}
	})
}

// The peer has received the FIN, but bytes before the FIN are missing. The sequence number of the FIN does not count as a byte.
func TestSelectiveAcknowledgementOfTheEnd(t *testing.T) {
	play(t, 5, func(c *playedPath) {
		if c.hears(1000, 5000, selective(2, 3000, 5001)); len(c.holes.list) != 1 || c.holes.end != 5000 {
			t.Errorf("the holes are %v and bytes up to %d have arrived, want one hole and 5000", c.holes.list, c.holes.end)
		}
	})
}

// A segment that the link sends again has the acknowledgement and the window of the newest segment, even if the newest segment
// carried no payload.
func TestSentAgainWithNewHeaders(t *testing.T) {
	c, s := accepted(t, handFlows["IPv4"][0], handFlows["IPv4"][1])
	const k = 964
	if _, err := s.Write(make([]byte, 10*k)); err != nil {
		t.Fatal(err)
	}
	first := c.ack
	data := func(s segment) bool { return c.mine(s) && len(s.payload) > 0 }
	c.h.want(t, "data", func(s segment) bool { return data(s) && s.seq == first+9*k })
	time.Sleep(20 * time.Millisecond)
	c.ack = first + k
	c.send(t, 3000)
	newest := c.h.want(t, "an acknowledgement", func(s segment) bool { return c.mine(s) && s.ack == c.next })
	a := c.segment(flagACK, nil)
	a.options = selective(2, first+2*k, first+8*k)
	c.h.write(t, a.packet())
	if s := c.h.want(t, "the missing segment", data); s.seq != first+k || s.ack != newest.ack || s.window != newest.window {
		t.Errorf("the Net sent the missing segment again as %v, want the acknowledgement and the window of the newest segment, %v", s, newest)
	}
}

// A closed longPath neither keeps packets nor sets timers.
func TestClosedLongPath(t *testing.T) {
	play(t, 20, func(c *playedPath) {
		c.close()
		c.sends(1000)
		if _, v := c.hears(1000, 5000, nil); len(c.held.list) > 0 || v.drop || c.armed {
			t.Errorf("a closed longPath keeps %d packets, returns the verdict %+v, and its timer runs: %t; want 0, no drop, and false", len(c.held.list), v, c.armed)
		}
		time.Sleep(time.Hour)
	})
}

// If the first round trip is short and at most fewBytes bytes have been acknowledged, the longPath ends and gVisor controls
// congestion. With more bytes, the longPath stays, because gVisor's congestion window no longer limits the bytes in flight.
func TestShortPath(t *testing.T) {
	for _, sent := range []uint32{1000, fewBytes + 1000} {
		synctest.Test(t, func(t *testing.T) {
			c := &playedPath{longPath: newLongPath(newLink(1420, nil), 0), segment: 1000, scale: 4}
			c.sends(sent)
			time.Sleep(shortestTrip - time.Microsecond)
			if _, v := c.hears(sent, 5000, nil); v.short != (sent == 1000) {
				t.Errorf("after %d acknowledged bytes, the verdict is %+v, want short only after 1000 bytes", sent, v)
			}
		})
	}
}

// A connection gets Reno if its path is long, and keeps CUBIC if the handshake and the first round trip show that it is short.
func TestControlByLength(t *testing.T) {
	const size = 900
	carry := func(trip time.Duration) *TCPConn {
		c, s := accepted(t, handFlows["IPv4"][0], handFlows["IPv4"][1])
		for range 5 {
			if _, err := s.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			c.h.want(t, "data", func(s segment) bool { return c.mine(s) && s.seq == c.ack && len(s.payload) == size })
			time.Sleep(trip)
			c.ack += size
			c.h.write(t, c.segment(flagACK, nil).packet())
		}
		return s
	}
	long := carry(20 * time.Millisecond)
	testkit.Eventually(t, "a connection on a long path uses Reno", func() bool { return controlOf(long) == "reno" })

	testkit.Eventually(t, "a connection on a short path uses CUBIC", func() bool { // on a busy machine, a path may seem long
		s := carry(0)
		return s.memory.heard.long.Load() == nil && controlOf(s) == "cubic"
	})
}

func controlOf(c *TCPConn) string {
	var o tcpip.CongestionControlOption
	_ = c.ep.GetSockOpt(&o)
	return string(o)
}

// A connection keeps at most maxSegments packets, and releases packets when they are acknowledged.
func TestSegmentsBound(t *testing.T) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{})
	defer p.DecRef()
	var s sentSegments
	for i := range uint32(maxSegments + 10) {
		s.add(p, 1000*i, 1000*i+1000)
	}
	if n := len(s.list); n != maxSegments {
		t.Errorf("%d packets are kept, want %d", n, maxSegments)
	}
	for i := range uint32(maxSegments) {
		s.drop(1000*i + 1000)
	}
	if len(s.list) != 0 {
		t.Errorf("%d packets are kept after all were acknowledged, want 0", len(s.list)-s.next)
	}
}

// FuzzAcknowledgements passes acknowledgements with arbitrary options to a longPath. It checks that nothing panics, that no
// window is raised, and that the link sends again only bytes that were sent and not yet acknowledged.
func FuzzAcknowledgements(f *testing.F) {
	f.Add(append([]byte{0, 3, 200, 18}, selective(2, 5000, 9000, 12_000, 13_000)...))
	f.Add([]byte{0, 1, 1, 4, 5, 200, 0, 0, 1, 2, 3, 6, 1, 1, 5, 10, 0, 0})
	f.Add([]byte{9, 0, 0, 2, 0, 0, 9, 255, 255, 3, 5, 0, 1})
	f.Add([]byte{0, 3, 200, 18, 5, 13, 2, 0, 2, 18, 128, 0, 136, 5, 0, 13, 2}) // a block that spans nearly half of all numbers
	f.Fuzz(func(t *testing.T, script []byte) {
		const first = uint32(0xffff_f000)
		c := newLongPath(newLink(1420, nil), first)
		defer c.close()
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: 40, Payload: buffer.MakeWithData(make([]byte, 1000))})
		defer p.DecRef()
		copy(p.TransportHeader().Push(20), make([]byte, 20))
		copy(p.NetworkHeader().Push(20), make([]byte, 20))
		p.GSOOptions.Type, p.GSOOptions.MSS = stack.GSOTCPv4, 1000
		for i := range uint32(20) {
			c.send(p, first+1000*i, first+1000*i+1000, 1<<30)
		}
		c.path.trip, c.total = shortestTrip, 1<<20
		for len(script) >= 4 {
			n := min(int(script[3])%41, len(script)-4)
			tcp := append(make([]byte, 20), script[4:4+n]...)
			ack := first + uint32(script[0])<<8 + uint32(script[1])
			binary.BigEndian.PutUint32(tcp[tcpAck:], ack)
			window := uint16(script[2]) << 8
			script = script[4+n:]
			c.probed = time.Now().Add(-shortestTrip)
			v := c.hear(tcp, window, 2, true)
			if got := binary.BigEndian.Uint16(tcp[tcpWindow:]); got > window {
				t.Errorf("the link raised the window from %d to %d", window, got)
			}
			for _, q := range v.again {
				seq := binary.BigEndian.Uint32(q.TransportHeader().Slice()[tcpSeq:])
				if int32(seq-c.acked) < 0 || int32(c.sent-seq) < int32(q.Data().Size()) || q.Data().Size() == 0 {
					t.Errorf("the link sent %d bytes from number %d again, want only bytes below %d and from %d on", q.Data().Size(), seq, c.sent, c.acked)
				}
				q.DecRef()
			}
			missing, last := int64(0), c.acked
			for _, g := range c.holes.list {
				if int32(g.from-last) < 0 || int32(g.to-g.from) <= 0 {
					t.Fatalf("the holes are %v, want them in order, not empty, and from number %d on", c.holes.list, c.acked)
				}
				missing, last = missing+int64(g.to-g.from), g.to
			}
			if missing != c.holes.missing || c.arrived() < 0 {
				t.Fatalf("holes.missing is %d, want the sum of the holes, and %d bytes have arrived, want no negative number; the holes are %v", c.holes.missing, c.arrived(), c.holes.list)
			}
		}
	})
}

// A path loses one packet in a hundred, and a transfer still fills the path. gVisor's own recovery would use only a fiftieth of
// the path's capacity.
func TestLossyPathIsFilled(t *testing.T) {
	const mbits, during = 50, 4 * time.Second
	a, b, _ := piped(t, pipe.Conditions{Rate: mbits * 1e6 / 8, Queue: mbits * 1e6 / 8 / 20, Delay: 25 * time.Millisecond, Loss: 0.01})
	l, err := b.Listen("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sums := make(chan [32]byte, 1)
	const total = 12 << 20
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		sum := sha256.New()
		_, _ = io.CopyN(io.MultiWriter(c, sum), rand.NewChaCha8([32]byte{1}), total)
		sums <- [32]byte(sum.Sum(nil))
	}()
	c, err := a.DialContext(t.Context(), "tcp", netip.AddrPortFrom(b4, 7).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := controlOf(c.(*TCPConn)); got != "reno" {
		t.Errorf("after a long handshake, the congestion control is %q, want reno", got)
	}
	begun, sum := time.Now(), sha256.New()
	n, err := io.Copy(sum, c)
	if err != nil || n != total || [32]byte(sum.Sum(nil)) != <-sums {
		t.Fatalf("the client read %d bytes with the error %v, want %d bytes, the same as the server sent", n, err, total)
	}
	if took := time.Since(begun); took > 4*during {
		t.Errorf("%d bytes took %v, want at most four times %v", total, took, during)
	}
	if stats := b.stack.Stats().TCP; stats.Retransmits.Value() < 20 {
		t.Errorf("the server sent %d segments again, want at least 20, so the path lost too few packets for this test", stats.Retransmits.Value())
	}
}
