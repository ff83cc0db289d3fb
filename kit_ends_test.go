package wireguard

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/noise"
	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// In these tests, the test controls both sides of a device, its Tunnel and its Bind:
//
//	drain (Tunnel) ◀─▶ Device ◀─▶ line (Bind) ◀─▶ the test, with a remote (the other end, without timers)
//	                     ▲
//	                 handClock
//
// Nothing here waits for a fixed time: line.receive gives trains to the device, and returns when the device calls Receive again.

// Many tests of this package use these names.
const (
	patience    = testkit.Patience
	raceEnabled = testkit.Race
)

var eventually, wantPanic = testkit.Eventually, testkit.WantPanic

// A handClock is a Clock that stands still until the test moves it.
type handClock struct{ at atomic.Int64 }

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func (c *handClock) Now() time.Duration { return time.Duration(c.at.Load()) }
func (c *handClock) Wall() time.Time    { return epoch.Add(c.Now()) }

// A line is a Bind that is connected to the test instead of a network.
type line struct {
	sent   chan datagram    // copies of the datagrams that the device sent, if send is nil
	send   func(ts []Train) // if not nil, called on the device's goroutine with the trains that it sends
	mu     sync.Mutex
	socket *lineSocket // the socket that was opened last
}

type datagram struct {
	b   []byte
	to  Endpoint
	tos uint8
}

func newLine() *line { return &line{sent: make(chan datagram, 1024)} }

func (l *line) Listen(port uint16) (Socket, error) {
	if port == 0 {
		port = 40000
	}
	s := &lineSocket{line: l, port: port, in: make(chan []Train), taken: make(chan struct{}, 1), closed: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.socket = s
	return s, nil
}

// receive hands trains to the device and waits until the device has handled them. It does not wait until handshake messages are
// handled, because workers do that on other goroutines.
func (l *line) receive(ts ...Train) {
	l.mu.Lock()
	s := l.socket
	l.mu.Unlock()
	select {
	case s.in <- ts:
	case <-s.closed:
		return
	}
	select {
	case <-s.taken:
	case <-s.closed:
	}
}

// next returns the next datagram that the device sent.
func (l *line) next(t testing.TB, why string) datagram {
	t.Helper()
	return testkit.Next(t, l.sent, "the device sends a datagram: "+why)
}

// nothing fails if the device has sent a datagram. Call settle first, because workers may still be sending handshake messages.
func (l *line) nothing(t testing.TB, why string) {
	t.Helper()
	select {
	case d := <-l.sent:
		t.Fatalf("the device sent a message of type %d, want none: %s", d.b[0], why)
	default:
	}
}

// A lineSocket is its own Receiver.
type lineSocket struct {
	line   *line
	port   uint16
	in     chan []Train
	taken  chan struct{}
	busy   bool // the device is still handling the trains that Receive returned last
	closed chan struct{}
	once   sync.Once
}

func (s *lineSocket) Receivers() []Receiver { return []Receiver{s} }
func (s *lineSocket) Close() error          { s.once.Do(func() { close(s.closed) }); return nil }

// Port returns 0 once the socket is closed, as the sockets of many Binds do.
func (s *lineSocket) Port() uint16 {
	select {
	case <-s.closed:
		return 0
	default:
		return s.port
	}
}

func (s *lineSocket) Receive() ([]Train, error) {
	if s.busy {
		s.busy = false
		s.taken <- struct{}{}
	}
	select {
	case ts := <-s.in:
		s.busy = true
		return ts, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *lineSocket) Send(ts []Train) {
	if s.line.send != nil {
		s.line.send(ts)
		return
	}
	for i := range ts {
		t := &ts[i]
		for at := 0; at < len(t.Data); at += t.Size {
			b := t.Data[at:min(at+t.Size, len(t.Data))]
			s.line.sent <- datagram{append([]byte(nil), b...), t.Endpoint, t.TOS}
		}
	}
}

// A drain is a Tunnel that has nothing to send. It calls the function write with the packets that the device delivers, or sends
// copies of them to the channel got if write is nil. Then it overwrites the packets, as a Tunnel may.
type drain struct {
	mtu    atomic.Int64
	write  func(pkts [][]byte) int
	got    chan []byte
	closed chan struct{}
	once   sync.Once
}

func newDrain() *drain {
	d := &drain{got: make(chan []byte, 1024), closed: make(chan struct{})}
	d.mtu.Store(1420)
	return d
}

func (d *drain) MTU() int                 { return int(d.mtu.Load()) }
func (d *drain) Close() error             { d.once.Do(func() { close(d.closed) }); return nil }
func (d *drain) ReadPackets(*Batch) error { <-d.closed; return net.ErrClosed }
func (d *drain) WritePackets(pkts [][]byte) (int, error) {
	n := len(pkts)
	if d.write != nil {
		n = d.write(pkts)
	} else {
		for _, p := range pkts {
			d.got <- append([]byte(nil), p...)
		}
	}
	for _, p := range pkts {
		for i := range p {
			p[i] = 0xa5
		}
	}
	return n, nil
}

func (d *drain) next(t testing.TB, why string) []byte {
	t.Helper()
	return testkit.Next(t, d.got, "the device delivers a packet: "+why)
}

// An end is a device together with its clock, its Bind and its Tunnel, all of which the test controls.
type end struct {
	*Device
	clock  *handClock
	line   *line
	tunnel *drain
}

// newEnd makes a device that is not up. The device is closed after the test.
func newEnd(t testing.TB, key PrivateKey, peers ...PeerConfig) *end {
	t.Helper()
	return newEndOf(t, Config{PrivateKey: key, Peers: peers})
}

// newEndOf is like newEnd, but takes a Config. It replaces the Config's Tunnel, Bind and Clock with those of the
// test.
func newEndOf(t testing.TB, c Config) *end {
	t.Helper()
	e := &end{clock: new(handClock), line: newLine(), tunnel: newDrain()}
	c.Tunnel, c.Bind, c.Clock = e.tunnel, e.line, e.clock
	var err error
	e.Device, err = New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// up is like newEnd, and also calls Up.
func up(t testing.TB, key PrivateKey, peers ...PeerConfig) *end {
	t.Helper()
	e := newEnd(t, key, peers...)
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	return e
}

// advance moves the clock forward, and handles the deadlines that are then due. In a running device, keepTime does this on its
// own goroutine; here it happens on the test's goroutine.
func (e *end) advance(t testing.TB, by time.Duration) {
	t.Helper()
	e.clock.at.Add(int64(by))
	for e.expireSome() {
	}
	e.settle(t)
}

// settle waits until all workers have ended. A worker ends when there is no handshake message to handle, and no peer for which it
// has to make an initiation.
func (e *end) settle(t testing.TB) {
	t.Helper()
	eventually(t, "all workers end", func() bool {
		e.slow.mu.Lock()
		defer e.slow.mu.Unlock()
		return e.slow.workers == 0
	})
}

// peer returns the device's state of the peer r.
func (e *end) peer(r *remote) *peer { return e.peers.Find(r.id.public) }

// send sends packets in one batch.
func (e *end) send(t testing.TB, packets ...[]byte) {
	t.Helper()
	b := e.NewBatch()
	for _, p := range packets {
		if !b.Append(p) {
			t.Fatal("the packets do not fit into a batch")
		}
	}
	if err := e.Send(b); err != nil {
		t.Fatal(err)
	}
}

// A remote is a peer of the device that the test controls. It has no device of its own: it calls the functions of handshake.go
// and keypair.go directly.
type remote struct {
	id     *identity
	addr   netip.Addr // the remote's address inside the tunnel
	from   Endpoint
	device PublicKey
	psk    PresharedKey
	static secret // the X25519 result of the static keys of the remote and the device
	jar    cookieJar
	ts     Timestamp
	local  uint32
	h      *handshake
	k      *keypair
}

// newRemote makes a remote whose keys, addresses and indices are computed from the number n. device is the public key of the
// device.
func newRemote(n int, device PublicKey) *remote {
	key := testKey(0x10000 + n)
	r := &remote{
		id: newIdentity(key), device: device, local: uint32(n) << 8,
		addr: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}),
		from: EndpointOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), uint16(1000+n>>8))),
	}
	if !device.IsZero() {
		var err error
		if r.static, err = r.id.private.shared(&device); err != nil {
			panic(err)
		}
	}
	return r
}

// testKey returns a private key that is computed from n.
func testKey(n int) (k PrivateKey) {
	h := noise.NewMAC([]byte("keys of tests")).Of(binary.BigEndian.AppendUint64(nil, uint64(n)))
	copy(k[:], h[:])
	copy(k[16:], h[:])
	return k.clamped()
}

// config returns the configuration with which the device adds r as a peer.
func (r *remote) config() PeerConfig {
	return PeerConfig{
		PublicKey: r.id.public, PresharedKey: r.psk, Endpoint: r.from,
		AllowedIPs: []netip.Prefix{netip.PrefixFrom(r.addr, 32)},
	}
}

// train returns a train with the single message m from r.
func (r *remote) train(m []byte) Train { return Train{Data: m, Size: len(m), Endpoint: r.from} }

// initiation returns a new initiation from r to its device.
func (r *remote) initiation() []byte {
	if r.ts = r.ts.next(); r.ts.After(TimestampOf(epoch.Add(1e6 * time.Hour))) {
		panic("too many initiations")
	}
	r.local++
	h, m, err := createInitiation(r.id, &r.device, &r.static, testKey(int(r.local)), r.ts, r.local)
	if err != nil {
		panic(err)
	}
	r.h = h
	r.jar.sign(m[:], r.device, 1)
	return m[:]
}

// takeResponse consumes the response m to the last initiation, and makes the session.
func (r *remote) takeResponse(t testing.TB, m []byte) {
	t.Helper()
	if len(m) != responseSize || m[0] != typeResponse || binary.LittleEndian.Uint32(m[responseReceiver:]) != r.local {
		t.Fatalf("the message is not a response to the remote: %x", m)
	}
	keys, index, err := r.h.consumeResponse(m, &r.psk)
	if err != nil {
		t.Fatal(err)
	}
	r.k = newKeypair(&keys.send, &keys.receive, r.local, index, true, 0)
}

// response returns the response to m, which is an initiation from the device.
func (r *remote) response(t testing.TB, m []byte) []byte {
	t.Helper()
	if len(m) != initiationSize || m[0] != typeInitiation {
		t.Fatalf("the message is not an initiation: %x", m)
	}
	h, from, err := consumeInitiation(r.id, m)
	if err != nil || from != r.device {
		t.Fatal("the initiation does not come from the device:", err)
	}
	if _, err := h.openTimestamp(m, &r.static); err != nil {
		t.Fatal(err)
	}
	r.local++
	a, keys, err := h.createResponse(&r.device, &r.psk, testKey(int(r.local)), r.local)
	if err != nil {
		t.Fatal(err)
	}
	r.k = newKeypair(&keys.send, &keys.receive, r.local, h.remote, false, 0)
	r.jar.sign(a[:], r.device, 1)
	return a[:]
}

// data returns a data message with the given packet, without padding and with the next counter.
func (r *remote) data(packet []byte) []byte { return r.dataAt(r.k.number(1), packet) }

func (r *remote) dataAt(counter uint64, packet []byte) []byte {
	m := make([]byte, messageOverhead+len(packet))
	copy(m[messageHeader:], packet)
	sealInPlace(r.k, m, counter)
	return m
}

// open returns the packet in m, which is a data message from the device.
func (r *remote) open(t testing.TB, m []byte) []byte {
	t.Helper()
	if len(m) < messageOverhead || m[0] != typeData || binary.LittleEndian.Uint32(m[4:]) != r.k.local {
		t.Fatalf("the message is not a data message to the remote: %x", m)
	}
	p, ok := r.k.open(m)
	if !ok {
		t.Fatal("the device's message is not authentic")
	}
	return p
}

// connect makes a session whose initiator is r, and confirms it.
func (e *end) connect(t testing.TB, r *remote) {
	t.Helper()
	e.line.receive(r.train(r.initiation()))
	r.takeResponse(t, e.line.next(t, "a response to the initiation").b)
	e.line.receive(r.train(r.data(nil)))
}

// packet4 returns an IP packet of n bytes from src to dst. packet6 is the same function, for tests with IPv6 addresses.
func packet4(n int, src, dst netip.Addr) []byte {
	p := make([]byte, n)
	for i := packet.PutIP(p, n, src, dst, packet.UDP, 0); i < n; i++ {
		p[i] = byte(i)
	}
	return p
}

func packet6(n int, src, dst netip.Addr) []byte { return packet4(n, src, dst) }

var (
	here  = netip.MustParseAddr("10.255.0.1") // an address on the device's side of the tunnel
	here6 = netip.MustParseAddr("fd00::1")

	nowhere = netip.MustParseAddr("203.0.113.9") // no peer has this address
)

// wantDrops compares the device's drop counters with the earlier values in before. It fails unless the counter of reason has
// grown by n and no other counter has grown.
func (e *end) wantDrops(t testing.TB, before Drops, reason DropReason, n uint64, why string) {
	t.Helper()
	now := e.drops.load()
	for r := range now {
		want := before[r]
		if DropReason(r) == reason {
			want += n
		}
		if now[r] != want {
			t.Errorf("%s: %v was counted %d times, want %d", why, DropReason(r), now[r]-before[r], want-before[r])
		}
	}
}

// A failer is the T of package testing or of package rapid.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// A testLink is a Link, as a Bind of a program may use it.
type testLink struct {
	name string
	key  byte
}

func (l testLink) Key() [16]byte { return [16]byte{15: l.key} }

func (l testLink) String() string { return l.name }

// sealInPlace turns m into a data message. m must already contain the padded packet, after the space for the header.
func sealInPlace(k *keypair, m []byte, counter uint64) {
	k.seal(m, m[messageHeader:len(m)-messageTag], counter)
}
