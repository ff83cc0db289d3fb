package wireguard_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// If the network loses messages, only the packets in these messages are lost, and sessions are renewed on time. Each data message
// has its own counter, so it does not depend on the message before it (whitepaper, section 5.4.6). If a handshake message is
// lost, the initiator sends a new initiation after REKEY_TIMEOUT (5 s; whitepaper, section 6.4).
func TestLoss(t *testing.T) {
	for _, loss := range []float64{0.01, 0.1, 0.5} {
		t.Run(fmt.Sprint(loss), func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				w.net.SetConditions(pipe.Conditions{Loss: loss, Delay: 20 * time.Millisecond})
				const n = 1500 // ten minutes of packets, in about five sessions
				atB, atA := traffic(w, a, b, n, 400*time.Millisecond)
				// Lost handshake messages delay few packets, because a rekey begins 60 s before the old session expires.
				least := int(n * (1 - loss) * 0.9)
				wantOnceInOrder(w, atB, least)
				wantOnceInOrder(w, atA, least)
				if h := w.net.Sent().Initiations; loss < 0.1 && h > 10 {
					w.Fatalf("the devices sent %d initiations in 10 minutes with a loss of %v, want at most 10", h, loss)
				}
				for _, n := range []*node{a, b} {
					if d := n.Status().Drops; d[wireguard.DropForged] != 0 || d[wireguard.DropReplayed] != 0 {
						w.Fatalf("the drops are %v, want no forged and no replayed messages", d)
					}
				}
			})
		})
	}
}

// If the network reorders packets within the replay window, the device delivers each packet once, in the order in which the
// packets arrive (whitepaper, section 5.4.6).
func TestReordering(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.net.SetConditions(pipe.Conditions{Delay: 10 * time.Millisecond, Jitter: 30 * time.Millisecond, Reorder: 0.1})
		all := numbered(0, 1000)
		for i := range 100 {
			a.send(b, all[10*i:10*i+10]...)
			w.advance(2 * time.Millisecond)
		}
		w.advance(time.Second)
		got := b.arrived()
		if slices.Equal(got, all) {
			w.Fatal("the network did not reorder the packets, so the test proves nothing")
		}
		slices.SortFunc(got, func(x, y string) int { i, _ := strconv.Atoi(x); j, _ := strconv.Atoi(y); return i - j })
		if !slices.Equal(got, all) {
			w.Fatalf("%d packets arrived, want each of %d once", len(got), len(all))
		}
		b.wantDrops(wireguard.DropReplayed, 0, "a reordered message is not a replay")
	})
}

// If the network duplicates a message, the device delivers its packet once, because it accepts each counter only once in a
// session (whitepaper, section 5.4.6).
func TestDuplication(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.net.SetConditions(pipe.Conditions{Duplicate: 1, Delay: 5 * time.Millisecond})
		atB, atA := traffic(w, a, b, 800, 250*time.Millisecond)
		wantOnceInOrder(w, atB, 800)
		wantOnceInOrder(w, atA, 800)
		if d := b.Status().Drops; d[wireguard.DropReplayed] < 800 {
			w.Fatalf("b counted %d replays, want at least 800: the copy of each packet", d[wireguard.DropReplayed])
		}
		if h := w.net.Sent().Initiations; h > 4 {
			w.Fatalf("the devices sent %d initiations, want at most 4: copies of handshake messages must not cause handshakes", h)
		}
	})
}

// If the MTU of a path shrinks, the packets that are too large are lost, and the others still arrive. If the Bind reports that it
// could not send a train, the device counts the train's packets as dropped. The network may fragment outer packets, because they
// do not have the flag DF, as in Linux (socket.c and udp_tunnel).
func TestPathMTUShrinks(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		scenario(t, func(w *world, a, b *node) {
			big, small := string(make([]byte, 1300)), "small"
			a.send(b, big, small)
			b.wantArrived("the MTU of the path is large enough", big, small)
			w.net.SetConditions(pipe.Conditions{MTU: 1280, RefuseTooBig: refuse})
			a.send(b, small, big, small, small)
			b.wantArrived("packets that fit still arrive", small, small, small)
			failed := uint64(0)
			if refuse {
				failed = 2 // the large packet, and the small one behind it in the same train, because Err is about a whole train
			}
			a.wantDrops(wireguard.DropSendFailed, failed, "the device counts the packets that the Bind could not send")
			a.tun.SetMTU(1200)
			a.send(b, big[:1100])
			b.wantArrived("packets of the smaller tunnel MTU fit", big[:1100])
			a.wantSession(b, true, "a failed send does not end the session")
			w.net.SetConditions(pipe.Conditions{})
			a.send(b, big)
			b.wantArrived("the device does not remember the smaller MTU of the path", big)
		})
	}
}

// After a call of Socket.Send, the device starts the timers that wait for an answer only if the socket has sent the data message.
func TestFailedSendIsNotUnanswered(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.net.SetConditions(pipe.Conditions{MTU: 100, RefuseTooBig: true})
		a.send(b, string(make([]byte, 500)))
		a.wantDrops(wireguard.DropSendFailed, 1, "the Bind refused the packet")
		if s := a.status(b).Sent; s.Packets != 0 || s.Bytes != 148+32 {
			w.Fatalf("the sent counters are %+v, want only the handshake: a packet that was not sent does not count (row 25)", s)
		}
		w.net.SetConditions(pipe.Conditions{})
		w.wantIdle(time.Minute, "no data was sent, so no answer is due")
	})
}

// In this test, a batch has packets to several peers, and one call of Receive returns messages from several peers.
func TestSeveralPeersInOneBatch(t *testing.T) {
	inWorld(t, func(w *world) {
		hub, b, c, d := w.node("hub"), w.node("b"), w.node("c"), w.node("d")
		spokes := []*node{b, c, d}
		for _, s := range spokes {
			hub.knows(s)
			s.knows(hub)
			w.connect(s, hub)
		}
		var burst [][]byte
		for i := range 40 {
			for j, s := range spokes {
				for range j + 1 { // consecutive packets to one peer: one, two or three
					burst = append(burst, hub.packet(s, strconv.Itoa(i)))
				}
			}
		}
		hub.inject(burst...)
		for j, s := range spokes {
			var want []string
			for i := range 40 {
				for range j + 1 {
					want = append(want, strconv.Itoa(i))
				}
			}
			s.wantArrived("each spoke gets its own packets in order", want...)
		}

		// One call of the hub's Receive returns messages from all spokes, in mixed order.
		w.net.SetConditions(pipe.Conditions{Delay: time.Millisecond})
		for i := range 40 {
			for _, s := range spokes {
				s.send(hub, s.name+strconv.Itoa(i))
			}
		}
		w.advance(2 * time.Millisecond)
		got := hub.arrived()
		for _, s := range spokes {
			i := 0
			for _, p := range got {
				if p[:1] == s.name {
					if p != s.name+strconv.Itoa(i) {
						w.Fatalf("packet %q of %s arrived, want number %d", p, s.name, i)
					}
					i++
				}
			}
			if i != 40 {
				w.Fatalf("%d packets of %s arrived, want 40", i, s.name)
			}
			if r := hub.status(s).Received.Packets; r != 40 {
				w.Fatalf("the hub counts %d packets received from %s, want 40", r, s.name)
			}
		}
	})
}

// If several goroutines send to one peer, the packets of each goroutine keep their order, even while sessions change.
func TestTwoSendersKeepOrder(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		const senders, batches, each = 4, 40, 5
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
					time.Sleep(time.Second) // all senders continue at the same time
				}
			})
		}
		next := make([]int, senders)
		for range batches + 1 {
			w.settle()
			for _, p := range b.arrived() {
				var s, i int
				fmt.Sscanf(p, "%d %d", &s, &i)
				if i != next[s] {
					w.Fatalf("sender %d: packet %d arrived, want packet %d", s, i, next[s])
				}
				next[s]++
			}
			time.Sleep(time.Second)
		}
		wg.Wait()
		for s, n := range next {
			if n != batches*each {
				w.Fatalf("%d packets of sender %d arrived, want %d", n, s, batches*each)
			}
		}
		a.wantDrops(wireguard.DropStagedOverflow, 0, "no staged packet was dropped")
	})
}

// A hop is a Bind that sends its datagrams through another device (over), as UDP packets whose source address (self) is inside
// the tunnel of that device.
type hop struct {
	over *wireguard.Device
	self netip.Addr
	in   chan []byte
	gone chan struct{}
	once sync.Once
}

func (h *hop) Listen(uint16) (wireguard.Socket, error) { return h, nil }
func (h *hop) Port() uint16                            { return 51820 }
func (h *hop) Receivers() []wireguard.Receiver         { return []wireguard.Receiver{h} }
func (h *hop) Close() error                            { h.once.Do(func() { close(h.gone) }); return nil }

func (h *hop) Send(ts []wireguard.Train) {
	b := h.over.NewBatch()
	for i := range ts {
		t := &ts[i]
		for datagram := range t.Datagrams() {
			if len(datagram) > 65535-28 {
				t.Err = syscall.EMSGSIZE // the datagram does not fit into an IP packet
				continue
			}
			p := pipe.UDPPacket(netip.AddrPortFrom(h.self, h.Port()), t.Endpoint.Addr, datagram)
			if !b.Append(p) {
				h.over.Send(b)
				b.Append(p)
			}
		}
	}
	h.over.Send(b)
}

func (h *hop) Receive() ([]wireguard.Train, error) {
	select {
	case p := <-h.in:
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:16])), h.Port())
		return []wireguard.Train{{Data: p[28:], Size: len(p) - 28, Endpoint: wireguard.EndpointOf(from)}}, nil
	case <-h.gone:
		return nil, net.ErrClosed
	}
}

// deliver receives the packets that the other device delivers. These packets are the datagrams for the hop.
func (h *hop) deliver(pkts [][]byte) {
	for _, p := range pkts {
		select {
		case h.in <- slices.Clone(p):
		default:
		}
	}
}

// A hopTunnel is the Tunnel of a device that transports only the datagrams of a hop.
type hopTunnel struct {
	*pipe.Tunnel
	hop *hop
}

func (t hopTunnel) WritePackets(pkts [][]byte) (int, error) {
	t.hop.deliver(pkts)
	return len(pkts), nil
}

// One tunnel runs inside another one: the Bind of a device sends through another device.
func TestTunnelInTunnel(t *testing.T) {
	inWorld(t, func(w *world) {
		var lower, upper [2]*node
		var hops [2]*hop
		for i := range lower {
			hops[i] = &hop{in: make(chan []byte, 256), gone: make(chan struct{})}
			lower[i] = w.node("lower"+strconv.Itoa(i), func(c *wireguard.Config) {
				c.Tunnel = hopTunnel{pipe.NewTunnel(1500), hops[i]}
			})
			hops[i].over, hops[i].self = lower[i].Device, lower[i].addr
		}
		for i := range upper {
			upper[i] = w.node("upper"+strconv.Itoa(i), func(c *wireguard.Config) { c.Bind = hops[i] })
		}
		for i := range lower {
			lower[i].knows(lower[1-i])
			upper[i].knows(upper[1-i], func(c *wireguard.PeerConfig) {
				c.Endpoint = wireguard.EndpointOf(netip.AddrPortFrom(lower[1-i].addr, 51820))
			})
		}
		upper[0].send(upper[1], "through both")
		upper[1].wantArrived("both tunnels have made their sessions", "through both")
		upper[1].send(upper[0], "and back")
		upper[0].wantArrived("packets in the other direction arrive", "and back")
		if n := w.net.Sent(); n.Initiations != 1 || n.Responses != 1 || n.Data < 4 {
			w.Fatalf("the network carried %+v, want one visible handshake, and the other one inside of data messages", n)
		}
		all := numbered(0, 2000)
		var got []string
		for i := 0; i < len(all); i += 50 { // this takes 400 s, and the sessions of both tunnels are renewed
			upper[0].send(upper[1], all[i:i+50]...)
			w.advance(10 * time.Second)
			got = append(got, upper[1].arrived()...)
		}
		if !slices.Equal(got, all) {
			w.Fatalf("%d of %d packets arrived, want all of them in order", len(got), len(all))
		}
		for _, u := range upper {
			u.Close()
		}
	})
}

// If a peer's endpoint lies inside the tunnel of the same device, the device sends its messages to itself. This loop does not
// amplify: the device still sends at most one initiation per 5 s, and stages a limited number of packets.
func TestEndpointInsideOwnTunnel(t *testing.T) {
	inWorld(t, func(w *world) {
		h := &hop{in: make(chan []byte, 256), gone: make(chan struct{})}
		a := w.node("a", func(c *wireguard.Config) { c.Bind = h })
		h.over, h.self = a.Device, a.addr
		b := w.nodeDown("b")
		a.knows(b, func(c *wireguard.PeerConfig) {
			c.Endpoint = wireguard.EndpointOf(netip.AddrPortFrom(b.addr, 51820))
		})
		a.send(b, "round and round")
		for range 60 {
			w.advance(time.Second)
		}
		s := a.status(b)
		if s.Sent.Bytes > 148*14 {
			w.Fatalf("the device sent %d bytes in a minute, want at most one initiation per 5 s", s.Sent.Bytes)
		}
		if s.Staged < 2 || s.Staged > 128 {
			w.Fatalf("%d packets are staged, want 2 to 128", s.Staged)
		}
		a.Close()
	})
}

// If a peer's endpoint moves to an address inside the tunnel while there is a session, a message that the device sends comes back
// to the same device as a packet to send. The device drops this packet, so there is no loop.
func TestEndpointMovesInsideOwnTunnel(t *testing.T) {
	inWorld(t, func(w *world) {
		h := &hop{gone: make(chan struct{})}
		switched := &switchedBind{hop: h}
		a := w.nodeDown("a", func(c *wireguard.Config) {
			switched.outside = c.Bind
			c.Bind = switched
		})
		if err := a.Up(); err != nil {
			w.Fatal(err)
		}
		h.over, h.self = a.Device, a.addr
		b := w.node("b")
		a.knows(b)
		b.knows(a)
		w.connect(a, b)
		a.update(b, wireguard.PeerChange{Endpoint: ptr(wireguard.EndpointOf(netip.AddrPortFrom(b.addr, 51820)))})
		before := a.status(b).Sent.Packets
		a.send(b, "round and round")
		w.advance(time.Second)
		s := a.status(b)
		if n := s.Sent.Packets - before; n != 1 {
			w.Fatalf("one packet was sent %d times, want once: the device must not encrypt the message again that came back", n)
		}
		a.wantDrops(wireguard.DropLoop, 1, "the device counts the packet that came back")
		again := s.Sent.Packets
		w.advance(10 * time.Second)
		if n := a.status(b).Sent.Packets; n != again {
			w.Fatalf("the device sent %d more packets, want none: the loop continues", n-again)
		}
		a.Close()
	})
}

// A switchedBind sends through the hop if the address is inside the tunnel, and otherwise through the Bind outside.
type switchedBind struct {
	outside wireguard.Bind
	hop     *hop
}

type switchedSocket struct {
	wireguard.Socket
	hop *hop
}

func (b *switchedBind) Listen(port uint16) (wireguard.Socket, error) {
	s, err := b.outside.Listen(port)
	return switchedSocket{s, b.hop}, err
}

func (s switchedSocket) Send(ts []wireguard.Train) {
	for i := range ts {
		if ts[i].Endpoint.Addr.Addr().As4()[0] == 10 {
			s.hop.Send(ts[i : i+1])
		} else {
			s.Socket.Send(ts[i : i+1])
		}
	}
}
