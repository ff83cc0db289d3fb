package wireguard

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// These tests run whole devices in lockstep. The devices have several goroutines, but only one of them runs at a time, and it
// starts the next one when it has finished its step:
//
//	test ─ go ─▶ stepper (source) ─▶ Device.Send ─▶ station ─ mail ─▶ station ─▶ Device.receive ─▶ stepper (sink) ─ done ─▶ test
//
// All Tunnels and Binds allocate their memory before the test tells a stepper to send (go in the diagram). So every allocation
// between go and done is made by the library.

// A stepper is a Tunnel that sends its packets once for each value that it receives from the channel due.
type stepper struct {
	packets [][]byte
	due     chan struct{}
	done    chan<- int
	closed  chan struct{}
	once    sync.Once
}

func newStepper(done chan<- int) *stepper {
	return &stepper{due: make(chan struct{}), done: done, closed: make(chan struct{})}
}

func (s *stepper) MTU() int     { return 1420 }
func (s *stepper) Close() error { s.once.Do(func() { close(s.closed) }); return nil }

func (s *stepper) ReadPackets(b *Batch) error {
	select {
	case <-s.due:
		for _, p := range s.packets {
			b.Append(p)
		}
		return nil
	case <-s.closed:
		return net.ErrClosed
	}
}

func (s *stepper) WritePackets(pkts [][]byte) (int, error) {
	s.done <- len(pkts)
	return len(pkts), nil
}

// A station is a Bind and its only Socket. The stations that can send to each other are in one map (post). A mail is a slice with
// one train. To send a train, a station copies it into a spare mail of the destination. Receive lends the mail to the device, and
// makes it spare again at the next call.
type station struct {
	addr   netip.AddrPort
	post   map[netip.AddrPort]*station
	mail   chan []Train
	spare  chan []Train
	lent   []Train // the trains that Receive returned last
	closed chan struct{}
	once   sync.Once
}

func newStation(post map[netip.AddrPort]*station, n int) *station {
	s := &station{
		addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), uint16(n)), post: post,
		mail: make(chan []Train, 8), spare: make(chan []Train, 8), closed: make(chan struct{}),
	}
	for range cap(s.spare) {
		s.spare <- []Train{{Data: make([]byte, 0, 1<<16)}}
	}
	post[s.addr] = s
	return s
}

func (s *station) Listen(uint16) (Socket, error) { return s, nil }
func (s *station) Port() uint16                  { return s.addr.Port() }
func (s *station) Receivers() []Receiver         { return []Receiver{s} }
func (s *station) Close() error                  { s.once.Do(func() { close(s.closed) }); return nil }

// Send copies each train into a mail for the station at the train's endpoint.
func (s *station) Send(ts []Train) {
	for i := range ts {
		to := s.post[ts[i].Endpoint.Addr]
		mail := <-to.spare
		mail[0] = Train{
			Data: append(mail[0].Data[:0], ts[i].Data...), Size: ts[i].Size, Endpoint: EndpointOf(s.addr), TOS: ts[i].TOS,
		}
		to.mail <- mail
	}
}

func (s *station) Receive() ([]Train, error) {
	if s.lent != nil {
		s.spare <- s.lent
		s.lent = nil
	}
	select {
	case s.lent = <-s.mail:
		return s.lent, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// A framer is a station that puts a header in front of each datagram. The header is filled with zeros, except that its last two
// bytes have the datagram's length.
type framer struct {
	*station
	t    *testing.T
	head int
}

func (f framer) Headroom() int                 { return f.head }
func (f framer) Listen(uint16) (Socket, error) { return f, nil }
func (f framer) Receivers() []Receiver         { return []Receiver{f} }

func (f framer) Send(ts []Train) {
	for i := range ts {
		for m := range ts[i].Frames() {
			clear(m[:f.head])
			binary.BigEndian.PutUint16(m[f.head-2:], uint16(len(m)-f.head))
		}
	}
	f.station.Send(ts)
}

func (f framer) Receive() ([]Train, error) {
	ts, err := f.station.Receive()
	for i := range ts {
		for m := range ts[i].Frames() {
			if n := int(binary.BigEndian.Uint16(m[f.head-2:])); n != len(m)-f.head {
				f.t.Errorf("a datagram has %d bytes, but its header says %d", len(m)-f.head, n)
			}
		}
		ts[i].Headroom = f.head
	}
	return ts, err
}

// A star is a set of devices: a hub, and other devices that have sessions only with the hub. The fields hub and ends are the
// Tunnels of these devices.
type star struct {
	hub   *stepper
	ends  []*stepper
	done  chan int
	count int
}

// newStar makes a hub and n other devices. All their Binds are Framers that need headroom bytes in front of each datagram; if
// headroom is 0, the Binds are not Framers.
func newStar(t *testing.T, n, headroom int) *star {
	post := map[netip.AddrPort]*station{}
	bind := func(s *station) Bind {
		if headroom > 0 {
			return framer{s, t, headroom}
		}
		return s
	}
	s := &star{done: make(chan int)}
	s.hub = newStepper(s.done)
	hub := Config{PrivateKey: testKey(1), Tunnel: s.hub, Bind: bind(newStation(post, 1))}
	var devices []*Device
	for i := range n {
		at, tunnel := newStation(post, i+2), newStepper(s.done)
		s.ends = append(s.ends, tunnel)
		hub.Peers = append(hub.Peers, PeerConfig{
			PublicKey: testKey(i + 2).Public(), Endpoint: EndpointOf(at.addr), AllowedIPs: []netip.Prefix{netip.PrefixFrom(starAddr(i), 32)},
		})
		devices = append(devices, newStill(t, Config{PrivateKey: testKey(i + 2), Tunnel: tunnel, Bind: bind(at), Peers: []PeerConfig{{
			PublicKey: testKey(1).Public(), AllowedIPs: []netip.Prefix{netip.PrefixFrom(here, 32)},
		}}}))
	}
	d := newStill(t, hub)
	for i, p := range hub.Peers {
		if err := d.Handshake(t.Context(), p.PublicKey); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the session is confirmed", func() bool {
			s, _ := devices[i].Peer(testKey(1).Public())
			return s.Session
		})
	}
	return s
}

// newStill returns a device that is up. Its clock stands still, so that no timer fires.
func newStill(t *testing.T, c Config) *Device {
	c.Clock = new(handClock)
	d, err := New(c)
	if err == nil {
		err = d.Up()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func starAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }

// round makes one stepper (from) send its packets, and waits until they have arrived.
func (s *star) round(from *stepper) {
	from.due <- struct{}{}
	for n := 0; n < len(from.packets); {
		n += <-s.done
	}
	s.count += len(from.packets)
}

// TestNoAllocationsThroughDevices checks that nothing is allocated for a packet on its whole path from the Tunnel of one device
// to the Tunnel of another, in both directions. It sends single packets, trains, packets of unequal sizes, and batches
// to many peers.
func TestNoAllocationsThroughDevices(t *testing.T) {
	for _, test := range []struct {
		name  string
		ends  int
		sizes []int // sizes of the packets of a batch; the list repeats
		n     int   // packets per batch
		head  int   // bytes of headroom
	}{
		{"one packet", 1, []int{1420}, 1, 0},
		{"a train", 1, []int{1420}, 64, 0},
		{"two trains of small packets", 1, []int{64}, 128, 0},
		{"unequal sizes", 1, []int{64, 1420, 200, 40}, 64, 0},
		{"many peers, packets in turn", 8, []int{200}, 64, 0},
		{"many peers, unequal sizes", 8, []int{1420, 100, 700}, 32, 0},
		{"headroom, a train", 1, []int{1420}, 40, 64},
		{"headroom, many peers, unequal sizes", 8, []int{1420, 100, 700}, 32, 10},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStar(t, test.ends, test.head)
			for i := range test.n {
				to := i % test.ends
				size := test.sizes[i%len(test.sizes)]
				s.hub.packets = append(s.hub.packets, packet4(size, here, starAddr(to)))
				s.ends[to].packets = append(s.ends[to].packets, packet4(size, starAddr(to), here))
			}
			calls := testkit.NoAllocations(t, 100, func() {
				s.round(s.hub)
				for _, e := range s.ends {
					s.round(e)
				}
			})
			if want := calls * 2 * test.n; s.count != want {
				t.Errorf("%d packets arrived, want %d", s.count, want)
			}
		})
	}
}

// TestNoAllocationsReceivingTrains checks that a device allocates nothing for the trains that a socket with receive offload
// returns. Each call of Receive returns many trains of several sessions. A train may mix sessions and sizes, and may contain ECN
// marks, keepalives and forgeries.
func TestNoAllocationsReceivingTrains(t *testing.T) {
	const remotes = 4
	var rs []*remote
	var peers []PeerConfig
	for i := range remotes {
		rs = append(rs, newRemote(i+1, testKey(1).Public()))
		rs[i].from = rs[0].from // all remotes send through one relay, because a train has one source
		peers = append(peers, rs[i].config())
	}
	e := up(t, testKey(1), peers...)
	n := 0
	e.tunnel.write = func(pkts [][]byte) int { n += len(pkts); return len(pkts) }
	var inner [remotes][]byte
	for i, r := range rs {
		e.connect(t, r)
		inner[i] = packet4(208, r.addr, here)
	}
	// Each remote has a train of 16 messages. One more train has messages of all remotes in alternation. The last train has a
	// forgery and then a valid message. The last message of each train is a keepalive.
	const size = messageOverhead + 208
	trains := make([]Train, 0, remotes+2)
	memory := make([][]byte, cap(trains))
	for i := range memory {
		memory[i] = make([]byte, 16*size)
	}
	message := func(m []byte, r *remote, inner []byte) {
		copy(m[messageHeader:], inner)
		sealInPlace(r.k, m[:messageOverhead+len(inner)], r.k.number(1))
	}
	train := func(i, n int, of func(j int) int) {
		for j := range n {
			who := of(j)
			message(memory[i][j*size:(j+1)*size], rs[who], inner[who])
		}
		message(memory[i][n*size:n*size+messageOverhead], rs[of(n)], nil)
		trains = append(trains, Train{
			Data: memory[i][:n*size+messageOverhead], Size: size, Endpoint: rs[0].from, TOS: uint8(i) & packet.ECNMask,
		})
	}
	batch := func() {
		trains = trains[:0]
		for i := range remotes {
			train(i, 15, func(int) int { return i })
		}
		train(remotes, 15, func(j int) int { return j % remotes })
		train(remotes+1, 2, func(int) int { return 0 })
		memory[remotes+1][size/2] ^= 1
		e.line.receive(trains...)
	}
	const packets = remotes*15 + 15 + 1
	calls := testkit.NoAllocations(t, 100, batch)
	if want := calls * packets; n != want {
		t.Errorf("%d packets were delivered, want %d", n, want)
	}
	if got := e.drops.load(); got[DropForged] != uint64(calls) || got.Total() != got[DropForged] {
		t.Errorf("the drops are %v, want only the forged messages", got)
	}
}

// TestNoAllocationsBehindTheTurn checks that Send allocates nothing even if another goroutine is sending to the same peer. Send
// then copies its batch, and the other goroutine sends the copy.
func TestNoAllocationsBehindTheTurn(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := newEnd(t, testKey(1), r.config())
	sent := 0
	e.line.send = func(ts []Train) {
		if ts[0].Data[0] != typeData {
			e.line.sent <- datagram{slices.Clone(ts[0].Data), ts[0].Endpoint, 0}
			return
		}
		for i := range ts {
			sent += ts[i].Len()
		}
	}
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	e.connect(t, r)
	outer, inner := e.NewBatch(), e.NewBatch()
	packets := [][]byte{packet4(100, here, r.addr), packet4(1420, here, r.addr)}
	count, nested := e.line.send, false
	e.line.send = func(ts []Train) {
		count(ts)
		if nested = !nested; !nested { // this call sends the packets that the call before it queued
			return
		}
		for range 20 {
			inner.Append(packets[0])
			inner.Append(packets[1])
		}
		e.Device.Send(inner)
	}
	sent = 0
	calls := testkit.NoAllocations(t, 100, func() {
		outer.Append(packets[0])
		e.Device.Send(outer)
	})
	if want := calls * 41; sent != want {
		t.Errorf("%d packets were sent, want %d", sent, want)
	}
}
