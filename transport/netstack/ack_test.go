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

// TestAck checks which acknowledgements a link holds, and when it sends them. The test runs in virtual time, because a link
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
			t.Fatalf("%s: sent %v, want %v", why, got, acks)
		}
		for i := range acks {
			if got[i] != acks[i] {
				t.Fatalf("%s: sent %v, want %v", why, got, acks)
			}
		}
	}

	begin()
	l.write(t, s.say(10, 0))
	want("an acknowledgement of one small segment waits")
	l.write(t, s.say(0, 5))
	want("the answer takes it along", 10)
	l.write(t, s.say(10, 0))
	begun := time.Now()
	l.running.Wait()
	want("without an answer it is sent by itself", 10, 20)
	if waited := time.Since(begun); waited != ackDelay {
		t.Errorf("it waited %v, want %v", waited, ackDelay)
	}
	time.Sleep(time.Hour)
	want("and no timer goes on", 10, 20)

	begin()
	l.write(t, s.say(10, 0))
	l.write(t, s.say(10, 0))
	want("the second in a row is sent at once, in place of both", 20)

	begin()
	l.write(t, s.say(10, 0))
	l.write(t, s.with(0, 0, tcpACK|tcpFIN, 8))
	want("a FIN takes it along", 10)

	begin()
	l.write(t, s.say(0, 0))
	want("a repeated number is news", 0)
	l.write(t, s.say(1421, 0))
	want("so is that of more than one segment", 0, 1421)
	l.write(t, s.with(1, 0, tcpACK, 5))
	want("and a selective one", 0, 1421, 1422)
	l.write(t, s.with(1, 0, tcpACK|0x20, 8))
	want("and one with URG", 0, 1421, 1422, 1423)

	begin()
	other := &speaker{hash: 7 + 256} // uses the same slot
	l.write(t, s.say(10, 0))
	l.write(t, other.say(10, 0))
	want("a connection without a slot does not wait", 10)
	c.packets = nil
	l.write(t, s.say(0, 5))
	want("and does not disturb the one that has it", 10)
	l.write(t, other.say(10, 0))
	l.write(t, other.say(10, 0))
	want("which loses it when it has nothing there", 10, 20)

	begin()
	unknown := numbered(0, 0)
	unknown.GSOOptions = stack.GSO{}
	l.write(t, unknown)
	if len(c.packets) != 1 {
		t.Error("a packet of no connection waits")
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
		want("the first acknowledgement waits")
		l.write(t, s.say(0, 5))
		want("and the request takes it along", s.ack)
		l.write(t, s.say(1<<30, 0))
		want("a later one that jumps does not wait", s.ack-1<<30, s.ack)
	}

	// After a FIN, a held acknowledgement is sent just before the next packet of another connection.
	begin()
	l.write(t, s.with(0, 0, tcpACK|tcpFIN, 8))
	synctest.Wait()
	c.packets = nil
	l.write(t, s.say(10, 0))
	want("an acknowledgement after the FIN waits")
	l.write(t, (&speaker{hash: 8}).say(77, 5))
	want("and leaves with another connection's packet", 10, 77)
	if l.acks.finals != 0 {
		t.Errorf("%d acknowledgements of ended connections are left", l.acks.finals)
	}
	l.write(t, s.say(10, 0))
	l.running.Wait()
	want("or by itself", 10, 77, 20)
	l.write(t, s.say(10, 0))
	l.write(t, s.say(10, 0))
	want("and never two in a row wait", 10, 77, 20, 40)
	if l.acks.finals != 0 {
		t.Errorf("%d acknowledgements of ended connections are left", l.acks.finals)
	}

	begin()
	l.write(t, s.say(10, 0))
	l.close()
	l.running.Wait()
	want("a link that is closed forgets it")

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
		t.Errorf("%d packets wait for the turn, want the acknowledgement", len(l.queue))
	}
	l.mu.Unlock()
	close(g.leave)
	<-done
	l.running.Wait()
	if len(g.batches) != 3 || l.busy || l.queued != 0 {
		t.Errorf("%d batches were sent, want 3; the turn is taken: %v", len(g.batches), l.busy)
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
