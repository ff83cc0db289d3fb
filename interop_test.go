package wireguard_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/transport/udp"
	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// These tests check interoperability with wireguard-go over UDP sockets on loopback. Except in TestInteropRoaming, all datagrams
// between the two devices pass through a relay, which counts the messages of each type:
//
//	our Device ─ udp ─▶ relay ─ udp ─▶ wireguard-go's Device
//	10.0.0.1, fd00::1                  10.0.0.2, fd00::2

const interopWait = 20 * time.Second // the time limit of actions that take milliseconds

// A shiftedClock is the system's clock plus a shift that the test sets.
type shiftedClock struct {
	start time.Time
	shift atomic.Int64
}

func newShiftedClock() *shiftedClock { return &shiftedClock{start: time.Now()} }

func (c *shiftedClock) Now() time.Duration {
	return time.Since(c.start) + time.Duration(c.shift.Load())
}
func (c *shiftedClock) Wall() time.Time { return time.Now().Add(time.Duration(c.shift.Load())) }

// A relay forwards datagrams between two devices. It has one socket for each device. The device sends all messages for its peer
// to this socket, as the peer's endpoint.
type relay struct {
	t      *testing.T
	toOurs [2]*net.UDPConn // the relay's sockets: our device uses [0], and wireguard-go uses [1]
	peers  [2]atomic.Pointer[netip.AddrPort]
	mu     sync.Mutex
	count  [2]map[pipe.MessageType]int // messages by sender and type
	wg     sync.WaitGroup
}

func newRelay(t *testing.T, loopback netip.Addr) *relay {
	r := &relay{t: t}
	for i := range r.toOurs {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
		if err != nil {
			t.Skipf("needs a socket on %v: %v", loopback, err)
		}
		r.toOurs[i] = c
		r.count[i] = map[pipe.MessageType]int{}
	}
	for i := range r.toOurs {
		r.wg.Add(1)
		go r.pass(i)
	}
	t.Cleanup(func() {
		r.toOurs[0].Close()
		r.toOurs[1].Close()
		r.wg.Wait()
	})
	return r
}

// pass forwards the datagrams that side (ours or theirs) sends to the other side.
func (r *relay) pass(side int) {
	defer r.wg.Done()
	b := make([]byte, 65535)
	for {
		n, from, err := r.toOurs[side].ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		r.peers[side].Store(&from)
		r.mu.Lock()
		r.count[side][pipe.TypeOf(b[:n])]++
		r.mu.Unlock()
		if to := r.peers[1-side].Load(); to != nil {
			r.toOurs[1-side].WriteToUDPAddrPort(b[:n], *to)
		}
	}
}

const ours, theirs = 0, 1

// sent returns how many messages of type m the given side sent.
func (r *relay) sent(side int, m pipe.MessageType) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count[side][m]
}

func (r *relay) addr(side int) netip.AddrPort {
	a := r.toOurs[side].LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// An interop has our device, wireguard-go's device and the relay between them.
type interop struct {
	t         *testing.T
	relay     *relay
	clock     *shiftedClock
	dev       *wireguard.Device
	tun       *pipe.Tunnel
	theirs    *device.Device
	theirTun  *tuntest.ChannelTUN
	ourKey    wireguard.PrivateKey
	theirKey  wireguard.PrivateKey
	theirPort uint16
}

func newInterop(t *testing.T, loopback string, psk wireguard.PresharedKey) *interop {
	testkit.NeedsSockets(t)
	x := &interop{
		t: t, relay: newRelay(t, netip.MustParseAddr(loopback)), clock: newShiftedClock(), tun: pipe.NewTunnel(1420),
		theirTun: tuntest.NewChannelTUN(), ourKey: wireguard.NewPrivateKey(), theirKey: wireguard.NewPrivateKey(),
	}
	dev, err := wireguard.New(wireguard.Config{
		PrivateKey: x.ourKey, Tunnel: x.tun, Bind: &udp.Bind{}, Clock: x.clock,
		Peers: []wireguard.PeerConfig{{
			PublicKey: x.theirKey.Public(), PresharedKey: psk, AllowedIPs: prefixes(theirAddrs),
			Endpoint: wireguard.EndpointOf(x.relay.addr(ours)),
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	x.dev = dev
	t.Cleanup(func() { dev.Close() })
	if err := dev.Up(); err != nil {
		t.Fatal(err)
	}

	x.theirs = device.NewDevice(x.theirTun.TUN(), conn.NewStdNetBind(), device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(x.theirs.Close)
	public := x.ourKey.Public()
	x.set("private_key=%s\nlisten_port=0\npublic_key=%x\npreshared_key=%s\nendpoint=%v\nallowed_ip=10.0.0.1/32\nallowed_ip=fd00::1/128",
		hexOf(x.theirKey.Text()), public[:], hexOf(psk.Text()), x.relay.addr(theirs))
	if err := x.theirs.Up(); err != nil {
		t.Fatal(err)
	}
	// The relay learns the address of a device from the datagrams that the device sends. The test also sets both addresses here,
	// so that the relay can send to a device that has sent nothing.
	for _, line := range strings.Split(x.get(), "\n") {
		fmt.Sscanf(line, "listen_port=%d", &x.theirPort)
	}
	x.locate(loopback)
	return x
}

// locate gives the relay the addresses on which the two devices listen.
func (x *interop) locate(loopback string) {
	a := netip.MustParseAddr(loopback)
	our, their := netip.AddrPortFrom(a, x.dev.Status().ListenPort), netip.AddrPortFrom(a, x.theirPort)
	x.relay.peers[ours].Store(&our)
	x.relay.peers[theirs].Store(&their)
}

func hexOf(text string) string {
	k, err := wireguard.ParsePrivateKey(text)
	if err != nil {
		panic(err)
	}
	return hex.EncodeToString(k[:])
}

func (x *interop) set(format string, args ...any) {
	x.t.Helper()
	if err := x.theirs.IpcSet(fmt.Sprintf(format, args...) + "\n"); err != nil {
		x.t.Fatal(err)
	}
}

func (x *interop) get() string {
	s, err := x.theirs.IpcGet()
	if err != nil {
		x.t.Fatal(err)
	}
	return s
}

// send sends one packet in each direction and waits until both have arrived unchanged. The parameter first says which side (ours
// or theirs) sends first. The parameter v6 is 1 for IPv6 packets and 0 for IPv4 packets.
func (x *interop) send(first int, v6, size int) {
	x.t.Helper()
	out := pipe.UDPPacket(netip.AddrPortFrom(ourAddrs[v6], 1000), netip.AddrPortFrom(theirAddrs[v6], 2000), make([]byte, size))
	back := pipe.UDPPacket(netip.AddrPortFrom(theirAddrs[v6], 2000), netip.AddrPortFrom(ourAddrs[v6], 1000), make([]byte, size))
	if first == ours {
		x.out(out)
		x.back(back)
	} else {
		x.back(back)
		x.out(out)
	}
}

func (x *interop) out(p []byte) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), interopWait)
	defer cancel()
	if err := x.tun.Send(ctx, p); err != nil {
		x.t.Fatal(err)
	}
	select {
	case got := <-x.theirTun.Inbound:
		if !bytes.Equal(got, p) {
			x.t.Fatalf("wireguard-go delivered\n%x, want\n%x", got, p)
		}
	case <-ctx.Done():
		x.t.Fatalf("wireguard-go delivered no packet; its state is\n%s", x.get())
	}
}

func (x *interop) back(p []byte) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), interopWait)
	defer cancel()
	select {
	case x.theirTun.Outbound <- p:
	case <-ctx.Done():
		x.t.Fatal("wireguard-go did not read the packet from its tunnel")
	}
	got, err := x.tun.Receive(ctx)
	if err != nil {
		x.t.Fatalf("our device delivered no packet: %v; its status is %+v", err, x.status())
	}
	if !bytes.Equal(got, p) {
		x.t.Fatalf("our device delivered\n%x, want\n%x", got, p)
	}
}

func (x *interop) status() wireguard.PeerStatus {
	s, _ := x.dev.Peer(x.theirKey.Public())
	return s
}

// want waits until ok returns true. It fails after interopWait.
func (x *interop) want(what string, ok func() bool) {
	x.t.Helper()
	for end := time.Now().Add(interopWait); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			x.t.Fatalf("this did not happen in time: %s\nour device's status: %+v\nwireguard-go's state:\n%s", what, x.status(), x.get())
		}
	}
}

func TestInterop(t *testing.T) {
	for _, role := range []string{"initiator", "responder"} {
		for _, loopback := range []string{"127.0.0.1", "::1"} {
			for _, psk := range []wireguard.PresharedKey{{}, wireguard.NewPresharedKey()} {
				t.Run(fmt.Sprintf("%s/%s/psk=%v", role, loopback, !psk.IsZero()), func(t *testing.T) {
					x := newInterop(t, loopback, psk)
					first := ours
					if role == "responder" {
						first = theirs
					}
					for _, size := range []int{0, 1, 15, 16, 100, 1392, 1372} {
						x.send(first, 0, min(size, 1420-28))
						x.send(first, 1, min(size, 1420-48))
					}
					if n := x.relay.sent(first, pipe.TypeInitiation); n != 1 {
						t.Errorf("the initiator sent %d initiations, want 1", n)
					}
					if n := x.relay.sent(1-first, pipe.TypeInitiation); n != 0 {
						t.Errorf("the responder sent %d initiations, want none", n)
					}
					// The last packet may arrive before its sender has counted it.
					x.want("our device counts 14 packets in each direction and no drop", func() bool {
						got := x.status()
						return got.Sent.Packets == 14 && got.Received.Packets == 14 && got.Drops.Total() == 0
					})
				})
			}
		}
	}
}

// TestInteropRekey checks that the initiator makes a new session after 120 s or 2^60 messages. The devices use the old session
// until the new one is established, and no packet is lost.
func TestInteropRekey(t *testing.T) {
	for _, by := range []string{"clock", "counter"} {
		t.Run(by, func(t *testing.T) {
			x := newInterop(t, "127.0.0.1", wireguard.PresharedKey{})
			x.send(ours, 0, 100)
			time.Sleep(50 * time.Millisecond) // wireguard-go accepts one initiation per 20 ms
			if by == "clock" {
				x.clock.shift.Add(int64(121 * time.Second))
			} else {
				wireguard.SetSendCounter(x.dev, x.theirKey.Public(), wireguard.RekeyAfterMessages)
				x.clock.shift.Add(int64(6 * time.Second)) // so that the last initiation is more than 5 s old
			}
			x.send(ours, 0, 100) // sent in the old session; this packet causes the new handshake
			x.want("wireguard-go sends a second response", func() bool { return x.relay.sent(theirs, pipe.TypeResponse) == 2 })
			x.want("our device has a session that is less than 60 s old", func() bool { s := x.status(); return s.Session && s.SessionAge < 60*time.Second })
			for range 10 {
				x.send(ours, 0, 100)
			}
			if n := x.relay.sent(ours, pipe.TypeInitiation); n != 2 {
				t.Errorf("our device sent %d initiations, want 2", n)
			}
		})
	}
}

// TestInteropCookieOurs checks that when our device is under load and sends a cookie reply, wireguard-go retries with the cookie.
func TestInteropCookieOurs(t *testing.T) {
	x := newInterop(t, "127.0.0.1", wireguard.PresharedKey{})
	wireguard.ForceLoad(x.dev, true)
	x.send(theirs, 0, 100)
	if n := x.relay.sent(ours, pipe.TypeCookieReply); n != 1 {
		t.Errorf("our device sent %d cookie replies, want 1", n)
	}
	if n := x.relay.sent(theirs, pipe.TypeInitiation); n != 2 {
		t.Errorf("wireguard-go sent %d initiations, want 2: one without mac2, and one with it", n)
	}
}

// initiationLike returns a message that has the form of an initiation but is not authentic: only its mac1 is valid. It makes its
// receiver compute an X25519.
func initiationLike(receiver wireguard.PublicKey) []byte {
	m := make([]byte, 148)
	m[0], m[20] = 1, 9
	key := blake2s.Sum256(append([]byte("mac1----"), receiver[:]...))
	h, _ := blake2s.New128(key[:])
	h.Write(m[:116])
	h.Sum(m[116:116])
	return m
}

// TestInteropCookieTheirs puts wireguard-go under load with bursts of forged initiations, so that it sends a cookie reply to our
// device. Our device must then make a session with the cookie.
func TestInteropCookieTheirs(t *testing.T) {
	x := newInterop(t, "127.0.0.1", wireguard.PresharedKey{})
	flood, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), x.theirPort)))
	if err != nil {
		t.Fatal(err)
	}
	defer flood.Close()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		m := initiationLike(x.theirKey.Public())
		for {
			for range 600 {
				flood.Write(m)
			}
			select {
			case <-done:
				return
			case <-time.After(300 * time.Millisecond):
			}
		}
	})
	stop := sync.OnceFunc(func() { close(done); wg.Wait() })
	defer stop()

	// Each call of try makes the device send one initiation. First it moves the device's clock forward by 6 s, because the device
	// sends at most one initiation per 5 s.
	try := func() {
		x.clock.shift.Add(int64(6 * time.Second))
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		x.dev.Handshake(ctx, x.theirKey.Public())
	}
	x.want("wireguard-go sends a cookie reply", func() bool {
		try()
		return x.relay.sent(theirs, pipe.TypeCookieReply) > 0
	})
	x.want("our device makes a session, with mac2", func() bool {
		try()
		return x.status().Session
	})
	stop()
}

// TestInteropRoaming checks that when one device changes its port, the other device uses the new port as soon as it receives an
// authentic packet from there. First one device changes its port, and then the other.
func TestInteropRoaming(t *testing.T) {
	x := newInterop(t, "127.0.0.1", wireguard.PresharedKey{})
	// This test does not use the relay, so the devices see each other's real ports.
	e := wireguard.EndpointOf(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), x.theirPort))
	change := wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: x.theirKey.Public(), Endpoint: &e}}}
	if err := x.dev.Configure(change); err != nil {
		t.Fatal(err)
	}
	x.send(ours, 0, 100)

	zero := uint16(0)
	before := x.dev.Status().ListenPort
	fixed := freePort(t)
	if err := x.dev.Configure(wireguard.Change{ListenPort: &fixed}); err != nil {
		t.Fatal(err)
	}
	if x.dev.Status().ListenPort == before {
		t.Fatal("Configure did not change the listen port")
	}
	x.send(ours, 0, 100)
	x.want("wireguard-go uses our new port", func() bool { return strings.Contains(x.get(), fmt.Sprintf("endpoint=127.0.0.1:%d\n", fixed)) })
	if err := x.dev.Configure(wireguard.Change{ListenPort: &zero}); err != nil {
		t.Fatal(err)
	}
	x.send(ours, 0, 100)

	theirs2 := freePort(t)
	x.set("listen_port=%d", theirs2)
	x.send(theirs, 0, 100)
	x.want("our device uses wireguard-go's new port", func() bool { return x.status().Endpoint.Addr.Port() == theirs2 })
	x.send(ours, 1, 100)
	if s := x.status(); s.LastHandshake.IsZero() || !s.Session {
		t.Errorf("the session did not survive the changes of the ports: %+v", s)
	}
}

func freePort(t *testing.T) uint16 {
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return uint16(c.LocalAddr().(*net.UDPAddr).Port)
}
