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
		w.want("a data, b data", "the answer is there while Send still waits")
		a.wantArrived("at once", "pong")
		w.wantAt(10*time.Second, "a keepalive", "a has nothing to send back")
		w.wantIdle(time.Minute, "the ping was answered: there is no reason for a handshake")
	})
	withSlowSocket(t, time.Millisecond, func(w *world, a, b *node) {
		b.send(a, "before")
		a.arrived()
		a.send(b, "ping")
		w.net.Cut(nil, nil)
		w.want("b data, a data", "b's came before the ping")
		w.wantAt(10*time.Second, "b keepalive", "which is cut off")
		w.wantJittered(5*time.Second+time.Millisecond, "a initiation", "the ping went unanswered: what came before it is no answer")
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
		w.want("a data", "what was sealed is sent; what waited for its turn is not")
		b.wantArrived("it was sealed before the removal", "with the socket")
		a.wantDrops(wireguard.DropNoSession, 1, "what waited is counted")
		if n, m := wireguard.StagedBytes(a.Device), wireguard.SessionIndices(a.Device); n != 0 || m != 0 {
			w.Fatalf("%d bytes staged and %d indices for nobody", n, m)
		}
		b.Close()
		w.wantIdle(10*time.Minute, "neither the rekey nor the 15 s of the removed peer's timers come")
	})
}

// If the socket cannot send, the device publishes an event with the peer and the error, at most once per second. It publishes no
// event if it has closed the socket itself.
func TestSendTrouble(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.wantEvents("before", wireguard.EventHandshake)
		w.net.SetConditions(pipe.Conditions{MTU: 100, RefuseTooBig: true})
		big := string(make([]byte, 500))
		for range 10 {
			a.send(b, big)
		}
		e := a.wantEvents("ten in one instant are told once", wireguard.EventBindTrouble)[0]
		if !errors.Is(e.Err, syscall.EMSGSIZE) || e.Peer != b.pub() || e.Endpoint.Addr != b.at().Addr {
			w.Fatalf("event %+v, want the peer, where it is, and why", e)
		}
		w.advance(time.Second - 1)
		a.send(b, big)
		a.wantEvents("less than a second later")
		w.advance(1)
		a.send(b, big)
		a.wantEvents("a second later", wireguard.EventBindTrouble)
		w.want("", "nothing of it is on the wire")
		a.wantDrops(wireguard.DropSendFailed, 12, "each is counted")

		w.advance(5 * time.Second)
		a.restart()
		a.send(b, "x") // needs an initiation of 148 bytes, which is too large
		w.want("", "an initiation is refused as well")
		a.wantEvents("a handshake that cannot leave is trouble too", wireguard.EventBindTrouble)
		w.net.SetConditions(pipe.Conditions{})
		w.wantJittered(5*time.Second, "a initiation, b response, a data", "the retry finds the socket well again")
		a.Down()
		a.send(b, "x")
		a.wantEvents("a device that is down has no trouble", wireguard.EventHandshake)
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
				w.Fatalf("sender %d: packet %d in place of %d", s, i, next[s])
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
				w.Fatalf("counter %d follows %d", c, counter-1)
			}
			counter++
		}
		if sessions != 2 {
			w.Fatalf("%d sessions, want one rekey", sessions)
		}
	})
}

// The receiver of another implementation stopped forever after one unusual socket error. Here the receiver continues, and the
// device publishes an event with the error. If there are more errors, the receiver waits between its attempts.
func TestReceiverSurvivesErrors(t *testing.T) {
	withMood(t, func(w *world, a, b *node, mood *moodyBind) {
		w.connect(a, b)
		a.wantEvents("before", wireguard.EventHandshake)
		odd := errors.New("recvmsg: network is down")
		mood.set(func() {
			for range 12 {
				mood.moods = append(mood.moods, odd)
			}
		})
		b.send(a, "one") // the pending call of Receive returns this packet, and the next call fails
		a.wantArrived("before the trouble", "one")
		w.advance(10 * time.Second)
		es := a.wantEvents("told once a second at most", wireguard.EventBindTrouble, wireguard.EventBindTrouble, wireguard.EventBindTrouble)
		if !errors.Is(es[0].Err, odd) {
			w.Fatalf("event %+v", es[0])
		}
		b.send(a, "two")
		a.wantArrived("it goes on", "two")
		mood.set(func() { mood.moods = []error{odd, odd, odd} })
		b.send(a, "three")
		a.Close() // the receiver is waiting after an error
	})
}
