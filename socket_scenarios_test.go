package wireguard_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A slowBind is a Bind whose sockets are slow: Send sends the messages at once, but returns only after a while (the field takes).
type slowBind struct {
	wireguard.Bind
	takes time.Duration
}

type slowSocket struct {
	wireguard.Socket
	b *slowBind
}

func (b *slowBind) Listen(port uint16) (wireguard.Socket, error) {
	s, err := b.Bind.Listen(port)
	return slowSocket{s, b}, err
}

func (s slowSocket) Send(ts []wireguard.Train) {
	s.Socket.Send(ts)
	time.Sleep(s.b.takes)
}

// withSlowSocket calls play with the devices a and b, which are peers. Send of a's socket returns only after the given time
// (takes).
func withSlowSocket(t *testing.T, takes time.Duration, play func(w *world, a, b *node)) {
	inWorld(t, func(w *world) {
		slow := &slowBind{}
		a := w.node("a", func(c *wireguard.Config) { slow.Bind, c.Bind = c.Bind, slow })
		b := w.node("b")
		a.knows(b)
		b.knows(a)
		w.connect(a, b)
		slow.takes = takes
		play(w, a, b)
	})
}

// If the answer to a packet arrives before Socket.Send has returned, it still counts as an answer. So there is no handshake 15 s
// later.
func TestAnswerBeforeSendReturns(t *testing.T) {
	withSlowSocket(t, time.Millisecond, func(w *world, a, b *node) {
		a.send(b, "ping")
		b.send(a, "pong")
		w.want("a data, b data", "the answer arrives while Send has not returned yet")
		a.wantArrived("the answer is delivered at once", "pong")
		w.wantAt(10*time.Second, "a keepalive", "a has no data to send back")
		w.wantIdle(time.Minute, "the ping was answered, so no handshake is needed")
	})
	withSlowSocket(t, time.Millisecond, func(w *world, a, b *node) {
		b.send(a, "before")
		a.arrived()
		a.send(b, "ping")
		w.net.Cut(nil, nil)
		w.want("b data, a data", "b's packet arrives before the ping is sent")
		w.wantAt(10*time.Second, "b keepalive", "the keepalive is lost")
		w.wantJittered(5*time.Second+time.Millisecond, "a initiation", "the ping went unanswered: a packet before the ping is not an answer")
	})
}

// If a peer is removed while the socket is sending packets to the peer, these packets are still sent. Packets that are queued
// behind them are not.
func TestPeerRemovedAmidSend(t *testing.T) {
	withSlowSocket(t, time.Second, func(w *world, a, b *node) {
		w.advance(125 * time.Second) // so that the next send would renew the session
		a.send(b, "with the socket")
		behind := a.NewBatch() // a batch of another sender
		behind.Append(a.packet(b, "behind it"))
		if err := a.Send(behind); err != nil {
			w.Fatal(err)
		}
		if err := a.RemovePeer(b.pub()); err != nil {
			w.Fatal(err)
		}
		w.advance(time.Second)
		w.want("a data", "the packet that was already encrypted is sent, and the queued packet is not")
		b.wantArrived("the packet was encrypted before the removal", "with the socket")
		a.wantDrops(wireguard.DropNoSession, 1, "the queued packet is counted as dropped")
		if n, m := wireguard.StagedBytes(a.Device), wireguard.SessionIndices(a.Device); n != 0 || m != 0 {
			w.Fatalf("%d bytes and %d session indices are left of the removed peer, want 0", n, m)
		}
		b.Close()
		w.wantIdle(10*time.Minute, "the timers of the removed peer cause no handshake")
	})
}

// If the socket cannot send, the device publishes an event with the peer and the error, at most once per second. It publishes no
// event if it has closed the socket itself.
func TestSendTrouble(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.wantEvents("the first handshake", wireguard.EventHandshake)
		w.net.SetConditions(pipe.Conditions{MTU: 100, RefuseTooBig: true})
		big := string(make([]byte, 500))
		for range 10 {
			a.send(b, big)
		}
		e := a.wantEvents("ten errors at the same time cause one event", wireguard.EventBindTrouble)[0]
		if !errors.Is(e.Err, syscall.EMSGSIZE) || e.Peer != b.pub() || e.Endpoint.Addr != b.at().Addr {
			w.Fatalf("the event is %+v, want the peer, its endpoint and the error", e)
		}
		w.advance(time.Second - 1)
		a.send(b, big)
		a.wantEvents("no second event within a second")
		w.advance(1)
		a.send(b, big)
		a.wantEvents("another event a second later", wireguard.EventBindTrouble)
		w.want("", "no packet was sent")
		a.wantDrops(wireguard.DropSendFailed, 12, "each packet is counted as dropped")

		w.advance(5 * time.Second)
		a.restart()
		a.send(b, "x") // needs an initiation of 148 bytes, which is too large
		w.want("", "the socket refuses the initiation, too")
		a.wantEvents("an initiation that cannot be sent causes an event, too", wireguard.EventBindTrouble)
		w.net.SetConditions(pipe.Conditions{})
		w.wantJittered(5*time.Second, "a initiation, b response, a data", "the socket works again when a sends the next initiation")
		a.Down()
		a.send(b, "x")
		a.wantEvents("a device that is down publishes no socket errors", wireguard.EventHandshake)
	})
}

// The packets of several senders to one peer keep their order, even if a sender queues its packets because another sender is
// inside Socket.Send. They also keep their order during a rekey.
func TestTwoSendersKeepOrderOnSlowSocket(t *testing.T) {
	withSlowSocket(t, time.Millisecond, func(w *world, a, b *node) {
		const senders, batches, each = 3, 100, 3
		w.advance(120*time.Second - 30*time.Millisecond) // so that the session is renewed while they send
		var wg sync.WaitGroup
		for s := range senders {
			wg.Go(func() {
				batch := a.NewBatch()
				for i := range batches {
					for j := range each {
						batch.Append(a.packet(b, fmt.Sprintf("%d %d", s, i*each+j)))
					}
					if err := a.Send(batch); err != nil {
						w.Error(err)
					}
					time.Sleep(time.Duration(100+300*s) * time.Microsecond)
				}
			})
		}
		wg.Wait()
		w.advance(time.Second)
		var next [senders]int
		for _, p := range b.arrived() {
			var s, i int
			fmt.Sscanf(p, "%d %d", &s, &i)
			if i != next[s] {
				w.Fatalf("sender %d: packet %d arrived, want packet %d", s, i, next[s])
			}
			next[s]++
		}
		if next != [senders]int{batches * each, batches * each, batches * each} {
			w.Fatalf("%v packets of each sender arrived, want %d", next, batches*each)
		}
		counter, index := uint64(0), uint32(0)
		sessions := 0
		for _, m := range append(w.past, w.log...) { // the counter of a session must also grow by one with each message
			if m.from != a || m.kind != pipe.TypeData && m.kind != pipe.TypeKeepalive {
				continue
			}
			i, c := binary.LittleEndian.Uint32(m.data[4:]), binary.LittleEndian.Uint64(m.data[8:])
			if i != index {
				index, counter = i, 0
				sessions++
			}
			if c != counter {
				w.Fatalf("counter %d follows %d, want consecutive counters", c, counter-1)
			}
			counter++
		}
		if sessions != 2 {
			w.Fatalf("a sent in %d sessions, want 2: one rekey", sessions)
		}
	})
}

// The receiver of another implementation stopped forever after one unusual socket error. Here the receiver continues, and the
// device publishes an event with the error. If there are more errors, the receiver waits between its attempts.
func TestReceiverSurvivesErrors(t *testing.T) {
	withMood(t, func(w *world, a, b *node, mood *moodyBind) {
		w.connect(a, b)
		a.wantEvents("the first handshake", wireguard.EventHandshake)
		odd := errors.New("recvmsg: network is down")
		mood.set(func() {
			for range 12 {
				mood.moods = append(mood.moods, odd)
			}
		})
		b.send(a, "one") // the pending call of Receive returns this packet, and the next call fails
		a.wantArrived("the packet arrives before the errors", "one")
		w.advance(10 * time.Second)
		es := a.wantEvents("a publishes at most one event per second", wireguard.EventBindTrouble, wireguard.EventBindTrouble, wireguard.EventBindTrouble)
		if !errors.Is(es[0].Err, odd) {
			w.Fatalf("the event is %+v, want the error of Receive", es[0])
		}
		b.send(a, "two")
		a.wantArrived("the receiver continues after the errors", "two")
		mood.set(func() { mood.moods = []error{odd, odd, odd} })
		b.send(a, "three")
		a.Close() // the receiver is waiting after an error
	})
}
