package wireguard_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A rush is a test in which several goroutines send through one device, the hub, to several peers, the spokes. The test uses only
// the API of the hub. It checks the messages that the hub sends, and the packets that the spokes deliver:
//
//	sources 0 to 3: Device.Send ──┐         ┌─ spoke 0 ─┐
//	source 4: the device's tunnel ┴▶ hub ─▶ ┼─ spoke 1 ─┼▶ order of each source, counts
//	                                  │     └─ spoke 2 ─┘
//	                                socket: counters, and which socket each session uses
type rush struct {
	*testing.T
	wire   *pipe.Network
	hub    *wireguard.Device
	end    *pipe.End    // the hub's end of the network
	tun    *pipe.Tunnel // the hub's Tunnel
	spokes []*spoke

	pause   time.Duration // Send of the hub's socket sometimes sleeps for up to this time before it sends
	sockets atomic.Int32  // how many sockets the hub has opened
	handed  atomic.Uint64 // how many packets all sources have given to the hub
	seen    atomic.Uint64 // how many packets had been dropped when pace was last called

	mu       sync.Mutex             // guards sessions
	sessions map[uint32]rushSession // by the spoke's index of the session
}

// A rushSession is the state of a session as far as the hub's socket has seen it.
type rushSession struct {
	socket  int32  // the number of the hub's socket that the session uses
	counter uint64 // the counter of the next message
}

// Sources are numbered from 0. Sources 0 to 3 call Device.Send, and source 4 is the hub's tunnel.
const (
	fromTunnel = 4
	sourceMax  = 5
)

var allSources = []int{0, 1, 2, 3, fromTunnel}

// A spoke is a peer of the hub. It only receives packets.
type spoke struct {
	*wireguard.Device
	key       wireguard.PrivateKey
	addr      netip.Addr // the spoke's address inside the tunnel
	config    wireguard.PeerConfig
	tun       *pipe.Tunnel
	end       *pipe.End
	handed    [sourceMax]uint32 // how many packets each source has sent to the spoke; only the source's goroutine uses its element
	next      [sourceMax]uint32 // for each source, the smallest number that its next packet to the spoke may have
	delivered atomic.Uint64
}

// newRush makes a hub and its spokes, and brings them up. No session exists yet.
func newRush(t *testing.T, spokes int) *rush {
	t.Helper()
	testkit.NeedsThreads(t, "the senders of this test loop without a pause")
	r := &rush{
		T: t, wire: pipe.NewNetwork(pipe.Config{}), tun: pipe.NewTunnel(0), sessions: make(map[uint32]rushSession),
	}
	r.end = r.wire.NewEnd()
	key := wireguard.NewPrivateKey()
	for i := range spokes {
		s := &spoke{key: wireguard.NewPrivateKey(), addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)}), tun: pipe.NewTunnel(0), end: r.wire.NewEnd()}
		s.config = wireguard.PeerConfig{
			PublicKey: s.key.Public(), Endpoint: s.end.Endpoint(1), AllowedIPs: []netip.Prefix{netip.PrefixFrom(s.addr, 32)},
		}
		s.Device = devices.Up(t, wireguard.Config{PrivateKey: s.key, ListenPort: 1, Bind: s.end, Tunnel: s.tun, Peers: []wireguard.PeerConfig{
			{PublicKey: key.Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
		}})
		r.spokes = append(r.spokes, s)
	}
	var peers []wireguard.PeerConfig
	for _, s := range r.spokes {
		peers = append(peers, s.config)
	}
	r.hub = devices.Up(t, wireguard.Config{PrivateKey: key, ListenPort: 1, Bind: rushBind{r.end, r}, Tunnel: r.tun, Peers: peers})
	var takers sync.WaitGroup
	for _, s := range r.spokes {
		takers.Go(func() { r.take(s) })
	}
	takers.Go(func() { // discards the ICMP errors that the hub delivers when it drops packets
		for _, err := r.tun.Receive(context.Background()); err == nil; _, err = r.tun.Receive(context.Background()) {
		}
	})
	t.Cleanup(func() {
		r.hub.Close()
		for _, s := range r.spokes {
			s.Close()
		}
		takers.Wait()
	})
	return r
}

// A rushBind numbers the sockets that it opens for the hub. Their method Send is sometimes slow.
type rushBind struct {
	wireguard.Bind
	r *rush
}

type rushSocket struct {
	wireguard.Socket
	r      *rush
	number int32
}

func (b rushBind) Listen(port uint16) (wireguard.Socket, error) {
	s, err := b.Bind.Listen(port)
	return rushSocket{s, b.r, b.r.sockets.Add(1)}, err
}

// Send reports an error if a message belongs to a session that used another socket before, or if its counter is not the next one
// of the session.
func (s rushSocket) Send(ts []wireguard.Train) {
	if s.r.pause > 0 && rand.IntN(4) == 0 {
		time.Sleep(rand.N(s.r.pause))
	}
	s.r.mu.Lock()
	for i := range ts {
		for m := range ts[i].Datagrams() {
			if kind := pipe.TypeOf(m); kind == pipe.TypeData || kind == pipe.TypeKeepalive {
				s.r.saw(s.number, binary.LittleEndian.Uint32(m[4:]), binary.LittleEndian.Uint64(m[8:]))
			}
		}
	}
	s.r.mu.Unlock()
	s.Socket.Send(ts)
}

// saw checks and records the session (index), socket and counter of a message. The caller must hold mu.
func (r *rush) saw(socket int32, index uint32, counter uint64) {
	was, known := r.sessions[index]
	if known && was.socket != socket {
		r.Errorf("a message of a session that used socket %d was sent through socket %d", was.socket, socket)
	}
	if counter != was.counter {
		r.Errorf("a message has counter %d, want %d", counter, was.counter)
	}
	r.sessions[index] = rushSession{socket, counter + 1}
}

// take receives the packets that the spoke s delivers. It reports an error if the number of a packet is not larger than that of
// the previous packet from the same source.
func (r *rush) take(s *spoke) {
	for {
		p, err := s.tun.Receive(context.Background())
		if err != nil {
			return
		}
		from, n := p[28], binary.BigEndian.Uint32(p[29:])
		if n < s.next[from] {
			r.Errorf("spoke %v: packet %d of source %d arrived, want packet %d or a later one", s.addr, n, from, s.next[from])
		}
		s.next[from] = n + 1
		s.delivered.Add(1)
	}
}

// burst returns n packets of a source. It sends them to the spokes in rotation, to random spokes, or all to one spoke.
func (r *rush) burst(source, n int) (ps [][]byte) {
	pattern, first := rand.IntN(3), rand.IntN(len(r.spokes))
	size := rand.IntN(1300)
	for i := range n {
		to := first
		switch pattern {
		case 0:
			to = (first + i) % len(r.spokes)
		case 1:
			to = rand.IntN(len(r.spokes))
			size = rand.IntN(200)
		}
		ps = append(ps, r.packet(source, r.spokes[to], size))
	}
	return ps
}

// packet returns the next packet of a source to the spoke s.
func (r *rush) packet(source int, s *spoke, size int) []byte {
	payload := make([]byte, 5+size)
	payload[0] = byte(source)
	binary.BigEndian.PutUint32(payload[1:], s.handed[source])
	s.handed[source]++
	return pipe.UDPPacket(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(source)}), 7), netip.AddrPortFrom(s.addr, 7), payload)
}

// hand gives packets of a source to the hub. The hub may refuse packets only if it is down or closed.
func (r *rush) hand(source int, b *wireguard.Batch, ps ...[]byte) error {
	r.handed.Add(uint64(len(ps)))
	if source == fromTunnel {
		return r.tun.Send(context.Background(), ps...)
	}
	for _, p := range ps {
		if !b.Append(p) {
			if err := r.send(b); err != nil {
				return err
			}
			b.Append(p)
		}
	}
	return r.send(b)
}

func (r *rush) send(b *wireguard.Batch) error {
	err := r.hub.Send(b)
	if err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "down") {
		r.Error(err)
	}
	return err
}

// run starts one goroutine for each of the given sources. Each goroutine calls the function do again and again until the function
// stop is called. That function also waits until the goroutines have ended.
func (r *rush) run(some []int, do func(source int, b *wireguard.Batch)) (stop func()) {
	var wg sync.WaitGroup
	ended := make(chan struct{})
	for _, source := range some {
		b := r.hub.NewBatch()
		wg.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
					do(source, b)
				}
			}
		})
	}
	return func() {
		r.Helper()
		close(ended)
		testkit.Returns(r, testkit.Patience, "the wait for the end of the sources", wg.Wait)
	}
}

// delivered returns how many packets all spokes delivered. dropped returns how many packets the network and all devices dropped.
func (r *rush) delivered() (n uint64) {
	for _, s := range r.spokes {
		n += s.delivered.Load()
	}
	return n
}

func (r *rush) dropped() uint64 {
	fates := r.wire.Stats().Fates
	n := fates.Total() - fates[pipe.FateDelivered]
	for _, d := range append(r.peers(), r.hub) {
		drops := d.Status().Drops
		n += drops.Total()
	}
	return n
}

func (r *rush) peers() (ds []*wireguard.Device) {
	for _, s := range r.spokes {
		ds = append(ds, s.Device)
	}
	return ds
}

// pace slows the sources down, because otherwise full queues would drop most packets and handshake messages. It waits until at
// most 500 packets are neither delivered nor dropped, but for at most 20 ms. If packets were dropped since the last call, pace
// first sleeps for 2 ms.
func (r *rush) pace() {
	if n := r.dropped(); r.seen.Swap(n) < n {
		time.Sleep(2 * time.Millisecond)
	}
	for start := time.Now(); r.delivered()+r.dropped()+500 < r.handed.Load() && time.Since(start) < 20*time.Millisecond; {
		time.Sleep(50 * time.Microsecond)
	}
}

func (r *rush) eventually(why string, ok func() bool) {
	r.Helper()
	for start := time.Now(); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Since(start) > testkit.Patience {
			r.fail(why)
		}
	}
}

// fail ends the test, and reports the state of all devices.
func (r *rush) fail(why string) {
	r.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s: the sources handed over %d packets, %d were delivered, %d were dropped\n", why, r.handed.Load(), r.delivered(), r.dropped())
	for i, d := range append(r.peers(), r.hub) {
		fmt.Fprintf(&b, "device %d:", i)
		for reason, n := range d.Status().Drops {
			if n > 0 {
				fmt.Fprintf(&b, " %d %v,", n, wireguard.DropReason(reason))
			}
		}
		for p := range d.Peers() {
			fmt.Fprintf(&b, "\n\tpeer with session %v, handshake at %v, %d staged", p.Session, p.LastHandshake, p.Staged)
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintf(&b, "the wire: %+v", r.wire.Stats())
	r.Fatal(b.String())
}

// wantCounted waits until each packet to the given spokes has been delivered, or counted as dropped by the hub, the network or
// the spoke. Call it after the sources have ended.
func (r *rush) wantCounted(some ...*spoke) {
	r.Helper()
	for _, s := range some {
		handed := uint64(0)
		for _, n := range s.handed {
			handed += uint64(n)
		}
		r.eventually(fmt.Sprintf("packets to %v were neither delivered nor counted as dropped", s.addr), func() bool {
			fates := r.wire.Stats().Fates
			p, _ := r.hub.Peer(s.config.PublicKey)
			drops := s.Status().Drops
			return s.delivered.Load()+p.Drops.Total()+drops.Total()+fates.Total()-fates[pipe.FateDelivered] >= handed
		})
	}
}

// wantNothingQueued waits until no packet is staged in the hub, and fails if packets stay staged. It does not see packets in the
// queues between senders.
func (r *rush) wantNothingQueued(why string) {
	r.Helper()
	r.eventually(why+": packets are still staged in the hub", func() bool {
		n := wireguard.StagedBytes(r.hub)
		for p := range r.hub.Peers() {
			n += int64(p.Staged)
		}
		return n == 0
	})
}

// wantFlow waits until each spoke has delivered another packet.
func (r *rush) wantFlow(why string) {
	r.Helper()
	for _, s := range r.spokes {
		before := s.delivered.Load()
		r.eventually(why, func() bool { return s.delivered.Load() > before })
	}
}
