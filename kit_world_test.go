package wireguard_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// Scenarios run whole devices on an in-memory network, which they call the wire. The time is the virtual time of a synctest
// bubble, where only sleeping takes time. The scenarios assert which messages the devices send:
//
//	10.0.0.1, fd00::1  a ── 198.18.0.1:1001 ─┐
//	10.0.0.2, fd00::2  b ── 198.18.0.2:1002 ─┼─ pipe.Network ─▶ world.log ─▶ w.want("a initiation, b response, a data", "why")
//	10.0.0.3, fd00::3  c ── 198.18.0.3:1003 ─┘
//
// Every device in a scenario has a Bind and a Tunnel that overwrite memory as soon as the device must no longer use it; see
// kit_scribble_test.go.

// A world is an in-memory network and the devices on it.
type world struct {
	testing.TB
	net   *pipe.Network
	start time.Time
	nodes []*node

	mu   sync.Mutex
	log  []message // the messages sent since the last call of want or script
	past []message // the messages sent before that call
	rule func(m *message) pipe.Verdict
}

// A node is a device in a world.
type node struct {
	*wireguard.Device
	w           *world
	name        string
	key         wireguard.PrivateKey
	end         *pipe.End
	tun         *pipe.Tunnel
	clock       *clock
	addr, addr6 netip.Addr // the node's addresses inside the tunnel
	port        uint16
	events      <-chan wireguard.Event // the device's events of all kinds except EventAttemptFailed
}

// A clock is a machine's virtual time. While the machine is suspended, a goroutine that reads the clock blocks until the machine
// resumes.
type clock struct {
	start time.Time

	mu     sync.Mutex // guards all fields below
	resume sync.Cond
	asleep bool
	leapt  time.Duration // how far leap moved the clock
	step   time.Duration // how far stepWall moved the wall clock
}

func newClock() *clock {
	c := &clock{start: time.Now()}
	c.resume.L = &c.mu
	return c
}

func (c *clock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.asleep {
		c.resume.Wait()
	}
	return time.Since(c.start) + c.leapt
}

func (c *clock) Wall() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.leapt + c.step)
}

func (c *clock) suspend(asleep bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asleep = asleep
	c.resume.Broadcast()
}

// leap moves the clock forward by d, as if the machine had been suspended that long. The timers of the Go runtime do not notice.
func (c *clock) leap(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leapt += d
}

// stepWall moves the wall clock forward by d, or back if d is negative.
func (c *clock) stepWall(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.step += d
}

// scenario calls play with two devices that are up and are peers of each other.
func scenario(t *testing.T, play func(w *world, a, b *node)) {
	t.Helper()
	inWorld(t, func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.knows(b)
		b.knows(a)
		play(w, a, b)
	})
}

// inWorld calls play with an empty world. A goroutine that is still running when play has returned fails the test.
func inWorld(t *testing.T, play func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{TB: t, net: pipe.NewNetwork(pipe.Config{Seed: 1}), start: time.Now()}
		w.net.Filter(w.record)
		play(w)
	})
}

// node adds a device, and brings it up. The functions in alter change its configuration first.
func (w *world) node(name string, alter ...func(c *wireguard.Config)) *node {
	w.Helper()
	n := w.nodeDown(name, alter...)
	if err := n.Up(); err != nil {
		w.Fatal(err)
	}
	w.settle()
	return n
}

func (w *world) nodeDown(name string, alter ...func(c *wireguard.Config)) *node {
	w.Helper()
	i := len(w.nodes) + 1
	random := rand.NewChaCha8([32]byte{byte(i)})
	n := &node{
		w: w, name: name, end: w.net.NewEnd(), tun: pipe.NewTunnel(0), clock: newClock(), port: uint16(1000 + i),
		addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), addr6: netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)}),
	}
	random.Read(n.key[:])
	n.boot(random, alter...)
	w.nodes = append(w.nodes, n)
	return n
}

// boot makes the node's device, or replaces it with a new one.
func (n *node) boot(random *rand.ChaCha8, alter ...func(c *wireguard.Config)) {
	n.w.Helper()
	c := wireguard.Config{
		PrivateKey: n.key, ListenPort: n.port, Clock: n.clock,
		Tunnel: scribblingTunnel{n.tun}, Bind: scribblingBind{n.end},
	}
	for _, f := range alter {
		f(&c)
	}
	d, err := wireguard.New(c)
	if err != nil {
		n.w.Fatal(err)
	}
	n.Device, n.key = d, c.PrivateKey
	var mu sync.Mutex
	wireguard.SetRandom(d, func(b []byte) {
		mu.Lock()
		defer mu.Unlock()
		random.Read(b)
	})
	n.events = n.watch(wireguard.EventHandshake, wireguard.EventSessionExpired, wireguard.EventEndpointMoved,
		wireguard.EventHandshakeFailed, wireguard.EventBindTrouble, wireguard.EventPeerForgotten)
	n.w.Cleanup(func() { d.Close() })
}

// watch returns a channel of the node's events of these kinds. If the channel is full, because the test has not read 128 events,
// further events are dropped.
func (n *node) watch(kinds ...wireguard.EventKind) <-chan wireguard.Event {
	sub, events := n.Subscribe(kinds...), make(chan wireguard.Event, 128)
	go func() {
		for e := range sub.Events(context.Background()) {
			select {
			case events <- e:
			default: // the channel is full
			}
		}
	}()
	return events
}

func (n *node) pub() wireguard.PublicKey { return n.key.Public() }

// at returns the endpoint of the node.
func (n *node) at() wireguard.Endpoint { return n.end.Endpoint(n.port) }

// peer returns the configuration with which another node adds o as a peer.
func (o *node) peer(alter ...func(c *wireguard.PeerConfig)) wireguard.PeerConfig {
	c := wireguard.PeerConfig{PublicKey: o.pub(), Endpoint: o.at(), AllowedIPs: o.prefixes()}
	for _, f := range alter {
		f(&c)
	}
	return c
}

func (o *node) prefixes() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(o.addr, 32), netip.PrefixFrom(o.addr6, 128)}
}

// knows makes o a peer of n.
func (n *node) knows(o *node, alter ...func(c *wireguard.PeerConfig)) {
	n.w.Helper()
	if err := n.SetPeer(o.peer(alter...)); err != nil {
		n.w.Fatal(err)
	}
	n.w.settle()
}

// configure calls Configure, which must succeed.
func (n *node) configure(c wireguard.Change) {
	n.w.Helper()
	if err := n.Configure(c); err != nil {
		n.w.Fatal(err)
	}
	n.w.settle()
}

// update changes n's configuration of its peer o.
func (n *node) update(o *node, c wireguard.PeerChange) {
	n.w.Helper()
	c.PublicKey = o.pub()
	n.configure(wireguard.Change{Peers: []wireguard.PeerChange{c}})
}

// psk returns the preshared key that n has configured for o.
func (n *node) psk(o *node) wireguard.PresharedKey {
	n.w.Helper()
	k, ok := n.PresharedKey(o.pub())
	if !ok {
		n.w.Fatalf("%s has no peer %s", n.name, o.name)
	}
	return k
}

// status returns n's status of its peer o.
func (n *node) status(o *node) wireguard.PeerStatus {
	n.w.Helper()
	s, ok := n.Peer(o.pub())
	if !ok {
		n.w.Fatalf("%s has no peer %s", n.name, o.name)
	}
	return s
}

// allowed returns the allowed IPs that n has configured for o, in order.
func (n *node) allowed(o *node) []netip.Prefix { return slices.Collect(n.AllowedIPs(o.pub())) }

// packet returns an IPv4 packet from n to o.
func (n *node) packet(o *node, payload string) []byte {
	return pipe.UDPPacket(netip.AddrPortFrom(n.addr, 7), netip.AddrPortFrom(o.addr, 7), []byte(payload))
}

// send sends packets to o from n's tunnel, in one burst, and then calls settle.
func (n *node) send(o *node, payloads ...string) {
	n.w.Helper()
	var ps [][]byte
	for _, p := range payloads {
		ps = append(ps, n.packet(o, p))
	}
	n.inject(ps...)
}

func (n *node) inject(packets ...[]byte) {
	n.w.Helper()
	if !n.tun.TrySend(packets...) {
		n.w.Fatalf("the tunnel of %s is full or closed", n.name)
	}
	n.w.settle()
}

// arrived removes all packets that n has delivered to its tunnel, and returns their payloads.
func (n *node) arrived() (payloads []string) {
	n.w.settle()
	for p := n.tun.TryReceive(); p != nil; p = n.tun.TryReceive() {
		header := 28
		if p[0]>>4 == 6 {
			header = 48
		}
		payloads = append(payloads, string(p[header:]))
	}
	return payloads
}

// wantArrived asserts the payloads of the packets that n has delivered to its tunnel since the last call of arrived or
// wantArrived.
func (n *node) wantArrived(why string, payloads ...string) {
	n.w.Helper()
	if got := n.arrived(); fmt.Sprint(got) != fmt.Sprint(payloads) {
		n.w.Fatalf("at %v: %s delivered the payloads %q, want %q: %s", n.w.now(), n.name, got, payloads, why)
	}
}

// wantDrops asserts how many drops with the reason r the device n has counted since its start.
func (n *node) wantDrops(r wireguard.DropReason, count uint64, why string) {
	n.w.Helper()
	n.w.settle()
	if got := n.Status().Drops[r]; got != count {
		n.w.Fatalf("at %v: %s counted %d drops with reason %q, want %d: %s", n.w.now(), n.name, got, r, count, why)
	}
}

// wantEvents asserts the kinds of the events since the last call of wantEvents, and returns these events.
func (n *node) wantEvents(why string, kinds ...wireguard.EventKind) (es []wireguard.Event) {
	n.w.Helper()
	n.w.settle()
	var got []wireguard.EventKind
	for len(n.events) > 0 {
		e := <-n.events
		es, got = append(es, e), append(got, e.Kind)
	}
	if fmt.Sprint(got) != fmt.Sprint(kinds) {
		n.w.Fatalf("at %v: the events of %s are %v, want %v: %s", n.w.now(), n.name, got, kinds, why)
	}
	return es
}

// wantSession asserts whether n has a session with o in which it can send.
func (n *node) wantSession(o *node, stands bool, why string) {
	n.w.Helper()
	if got := n.status(o).Session; got != stands {
		n.w.Fatalf("at %v: %s has a usable session with %s: %v, want %v: %s", n.w.now(), n.name, o.name, got, stands, why)
	}
}

// settle waits until every goroutine is blocked (synctest.Wait). No virtual time passes.
func (w *world) settle() { synctest.Wait() }

// now returns the time since the start of the world.
func (w *world) now() time.Duration { return time.Since(w.start) }

// advance lets time pass, and then calls settle.
func (w *world) advance(d time.Duration) {
	time.Sleep(d)
	w.settle()
}

// suspend suspends the machines of the nodes for the time d. During that time no message reaches them. Timers that come due
// during that time fire when the machines resume, as on a system whose timers include the time asleep.
func (w *world) suspend(d time.Duration, nodes ...*node) {
	w.settle()
	for _, n := range nodes {
		w.net.Cut(n.end, nil)
		n.clock.suspend(true)
	}
	time.Sleep(d)
	for _, n := range nodes {
		w.net.Mend(n.end, nil)
		n.clock.suspend(false)
	}
	w.settle()
}

// connect makes a session whose initiator is n, and asserts the messages of the handshake.
func (w *world) connect(n, o *node) {
	w.Helper()
	if err := n.Handshake(context.Background(), o.pub()); err != nil {
		w.Fatal(err)
	}
	w.want(fmt.Sprintf("%s initiation, %s response, %s keepalive", n.name, o.name, n.name), "a handshake takes one round trip")
	n.wantSession(o, true, "the initiator received the response")
	o.wantSession(n, true, "the responder received the keepalive")
}

func ptr[T any](v T) *T { return &v }

// connectAgain is like connect, but it restarts n first, so n has no old session with o.
func (w *world) connectAgain(n, o *node) {
	w.Helper()
	n.restart()
	w.connect(n, o)
}

// restart takes n down and brings it up again. After that, n has no sessions, and can send an initiation at once, even if it sent
// one less than 5 s ago.
func (n *node) restart() {
	n.w.Helper()
	n.Down()
	if err := n.Up(); err != nil {
		n.w.Fatal(err)
	}
	n.w.settle()
}

func contains(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }

func prefixesOf(ss ...string) (ps []netip.Prefix) {
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func ipPacket(src, dst netip.AddrPort, payload string) []byte {
	return pipe.UDPPacket(src, dst, []byte(payload))
}

// wantWorks asserts that a packet from a to b and a packet from b to a arrive without a handshake.
func wantWorks(w *world, a, b *node, why string) {
	w.Helper()
	w.script()
	a.send(b, why)
	b.send(a, why)
	w.want(fmt.Sprintf("%s data, %s data", a.name, b.name), why)
	b.wantArrived(why, why)
	a.wantArrived(why, why)
}

// hub returns a device h that has sessions with the devices b, c and d.
func hub(w *world, alter ...func(c *wireguard.Config)) (h, b, c, d *node) {
	h, b, c, d = w.node("hub", alter...), w.node("b"), w.node("c"), w.node("d")
	for _, n := range []*node{b, c, d} {
		h.knows(n)
		n.knows(h)
		w.connect(h, n)
	}
	return h, b, c, d
}

// meanwhile makes n call the function interrupt while it computes its first handshake message. Call meanwhile before n is up.
func (n *node) meanwhile(interrupt func()) {
	var mu sync.Mutex
	random, calls := rand.NewChaCha8([32]byte{5}), 0
	wireguard.SetRandom(n.Device, func(b []byte) {
		mu.Lock()
		random.Read(b)
		calls++
		first := calls == 1
		mu.Unlock()
		if first {
			interrupt()
		}
	})
}

var (
	elsewhere  = netip.MustParseAddr("203.0.113.9")
	elsewhere2 = netip.MustParseAddr("203.0.113.10")
	stranger   = netip.MustParseAddrPort("203.0.113.66:666")
)

// move gives n another address on the network. Messages to the old address are lost.
func (n *node) move(to netip.Addr) {
	n.w.Helper()
	if err := n.end.SetAddrs(to); err != nil {
		n.w.Fatal(err)
	}
}

func (n *node) wantEndpoint(o *node, at netip.AddrPort, why string) {
	n.w.Helper()
	if got := n.status(o).Endpoint.Addr; got != at {
		n.w.Fatalf("at %v: the endpoint that %s has for %s is %v, want %v: %s", n.w.now(), n.name, o.name, got, at, why)
	}
}

// changePort changes the listen port of n.
func (n *node) changePort(to uint16) {
	n.w.Helper()
	n.configure(wireguard.Change{ListenPort: &to})
	n.port = to
}

var (
	ourAddrs   = [2]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}
	theirAddrs = [2]netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}
)

func prefixes(addrs [2]netip.Addr) (ps []netip.Prefix) {
	for _, a := range addrs {
		ps = append(ps, netip.PrefixFrom(a, a.BitLen()))
	}
	return ps
}
