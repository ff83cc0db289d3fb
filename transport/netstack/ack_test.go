package netstack

import (
	"encoding/binary"
	"math/rand"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A speaker makes the packets of one TCP connection.
type speaker struct {
	hash     uint32
	seq, ack uint32
}

// say returns the connection's next packet, which acknowledges acked more bytes and carries n bytes.
func (s *speaker) say(acked, n int) *stack.PacketBuffer { return s.with(acked, n, tcpACK, 8) }

// with is like say, but it also takes the TCP flags of the packet, and the kind of the packet's only TCP option.
func (s *speaker) with(acked, n int, flags, option byte) *stack.PacketBuffer {
	p, l3, l4 := tcpPacket(rand.New(rand.NewSource(1)), false, 3, n)
	s.ack += uint32(acked)
	binary.BigEndian.PutUint32(p[l3+4:], s.seq)
	binary.BigEndian.PutUint32(p[l3+8:], s.ack)
	s.seq += uint32(n)
	p[l3+13] = flags
	p[l3+20], p[l3+21], p[l3+22], p[l3+23] = 1, 1, option, 10
	pkt := gsoPacket(p, l3, l4, 1300, 65000)
	pkt.Hash = s.hash
	return pkt
}

// sent returns the acknowledgement numbers of the packets that c received, in order.
func (c *collector) sent() (acks []uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.packets {
		acks = append(acks, binary.BigEndian.Uint32(p[28:]))
	}
	return acks
}

// TestAck checks which acknowledgements a link holds, and when it sends them. The test can run in virtual time, because a link
// needs no stack.
func TestAck(t *testing.T) { synctest.Test(t, testAck) }

func testAck(t *testing.T) {
	var c *collector
	var l *link
	var s *speaker
	// begin makes a connection whose last acknowledgement was 0.
	begin := func() {
		c, l, s = new(collector), newLink(1420, nil), &speaker{hash: 7}
		l.attach(c)
		l.write(t, s.say(0, 100))
		synctest.Wait() // in WebAssembly, another goroutine sends
		c.packets = nil
	}
	want := func(why string, acks ...uint32) {
		t.Helper()
		synctest.Wait()
		got := c.sent()
		if len(got) != len(acks) {
			t.Fatalf("%s: the link sent the acknowledgements %v, want %v", why, got, acks)
		}
		for i := range acks {
			if got[i] != acks[i] {
				t.Fatalf("%s: the link sent the acknowledgements %v, want %v", why, got, acks)
			}
		}
	}

	begin()
	l.write(t, s.say(10, 0))
	want("the link holds the acknowledgement of one small segment")
	l.write(t, s.say(0, 5))
	want("a packet with data replaces the held acknowledgement", 10)
	l.write(t, s.say(10, 0))
	begun := time.Now()
	l.running.Wait()
	want("without a packet with data, the link sends the held acknowledgement alone", 10, 20)
	if waited := time.Since(begun); waited != ackDelay {
		t.Errorf("the held acknowledgement waited %v, want %v", waited, ackDelay)
	}
	time.Sleep(time.Hour)
	want("no timer sends another acknowledgement", 10, 20)

	begin()
	l.write(t, s.say(10, 0))
	l.write(t, s.say(10, 0))
	want("the second acknowledgement in a row is sent at once and replaces the first", 20)

	begin()
	l.write(t, s.say(10, 0))
	l.write(t, s.with(0, 0, tcpACK|tcpFIN, 8))
	want("a FIN replaces the held acknowledgement", 10)

	begin()
	l.write(t, s.say(0, 0))
	want("an acknowledgement with a repeated number is sent at once", 0)
	l.write(t, s.say(1421, 0))
	want("an acknowledgement of more than one segment is sent at once", 0, 1421)
	l.write(t, s.with(1, 0, tcpACK, 5))
	want("a selective acknowledgement is sent at once", 0, 1421, 1422)
	l.write(t, s.with(1, 0, tcpACK|0x20, 8))
	want("an acknowledgement with URG is sent at once", 0, 1421, 1422, 1423)

	begin()
	other := &speaker{hash: 7 + 256} // uses the same slot
	l.write(t, s.say(10, 0))
	l.write(t, other.say(10, 0))
	want("an acknowledgement is sent at once if another connection's held acknowledgement takes the slot", 10)
	c.packets = nil
	l.write(t, s.say(0, 5))
	want("the connection with the slot keeps its held acknowledgement until it sends data", 10)
	l.write(t, other.say(10, 0))
	l.write(t, other.say(10, 0))
	want("another connection takes over a slot without a held acknowledgement, and its next acknowledgement is held", 10, 20)

	begin()
	unknown := numbered(0, 0)
	unknown.GSOOptions = stack.GSO{}
	l.write(t, unknown)
	if len(c.packets) != 1 {
		t.Error("the link did not send at once a packet that belongs to no connection")
	}

	// The link holds the first acknowledgement of a new connection, whether or not the other end's SYN arrived first.
	for _, flags := range []byte{tcpSYN, tcpSYN | tcpACK} {
		c, l, s = new(collector), newLink(1420, nil), &speaker{hash: 7}
		l.attach(c)
		s.ack = 1 << 31 // far from the acknowledgement number 0 of a free slot
		first := uint32(10)
		if flags == tcpSYN {
			s.ack, first = 0, 1<<31+10
		}
		open := s.with(0, 0, flags, 8)
		open.GSOOptions = stack.GSO{}
		l.write(t, open)
		synctest.Wait()
		c.packets = nil
		l.write(t, s.say(int(first), 0))
		want("the link holds the first acknowledgement of a connection")
		l.write(t, s.say(0, 5))
		want("the request replaces the first acknowledgement", s.ack)
		l.write(t, s.say(1<<30, 0))
		want("an acknowledgement of many more bytes is sent at once", s.ack-1<<30, s.ack)
	}

	// After a FIN, a held acknowledgement is sent just before the next packet of another connection.
	begin()
	l.write(t, s.with(0, 0, tcpACK|tcpFIN, 8))
	synctest.Wait()
	c.packets = nil
	l.write(t, s.say(10, 0))
	want("the link holds an acknowledgement after the FIN")
	l.write(t, (&speaker{hash: 8}).say(77, 5))
	want("the link sends the acknowledgement just before another connection's packet", 10, 77)
	if l.acks.finals != 0 {
		t.Errorf("the link counts %d held acknowledgements of connections that have sent their FIN, want 0", l.acks.finals)
	}
	l.write(t, s.say(10, 0))
	l.running.Wait()
	want("after ackDelay, the link sends the acknowledgement alone", 10, 77, 20)
	l.write(t, s.say(10, 0))
	l.write(t, s.say(10, 0))
	want("after the FIN too, the second acknowledgement in a row is sent at once and replaces the first", 10, 77, 20, 40)
	if l.acks.finals != 0 {
		t.Errorf("the link counts %d held acknowledgements of connections that have sent their FIN, want 0", l.acks.finals)
	}

	begin()
	l.write(t, s.say(10, 0))
	l.close()
	l.running.Wait()
	want("a closed link drops the held acknowledgement")

	// If another goroutine is sending when ackDelay ends, the held acknowledgement joins the queue.
	g := newGate()
	l, s = newLink(1420, nil), &speaker{hash: 7}
	l.attach(g)
	g.leave <- struct{}{}
	l.write(t, s.say(0, 100))
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.write(t, numbered(0, 100))
	}()
	synctest.Wait()
	l.write(t, s.say(10, 0))
	time.Sleep(2 * ackDelay)
	l.mu.Lock()
	if len(l.queue) != 1 {
		t.Errorf("%d packets are queued while another goroutine sends, want only the acknowledgement", len(l.queue))
	}
	l.mu.Unlock()
	close(g.leave)
	<-done
	l.running.Wait()
	if len(g.batches) != 3 || l.busy || l.queued != 0 {
		t.Errorf("%d batches were sent, want 3 and an empty queue; a goroutine still has the turn: %v", len(g.batches), l.busy)
	}

	// The sending goroutine sends the acknowledgement of an ended connection together with the queue.
	g = newGate()
	l, s = newLink(1420, nil), &speaker{hash: 7}
	l.attach(g)
	g.leave <- struct{}{}
	l.write(t, s.with(0, 0, tcpACK|tcpFIN, 8))
	synctest.Wait()
	done = make(chan struct{})
	go func() {
		defer close(done)
		l.write(t, numbered(0, 100))
	}()
	synctest.Wait()
	l.write(t, s.say(10, 0))
	l.write(t, numbered(1, 100))
	close(g.leave)
	<-done
	synctest.Wait()
	if !slices.Equal(g.batches, []int{1, 1, 2}) {
		t.Errorf("batches of %v packets were sent, want 1, 1 and 2", g.batches)
	}
	l.running.Wait()
}
