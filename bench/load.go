package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/packet"
	"golang.org/x/crypto/chacha20poly1305"
)

// loadMeasures returns the measures of a device that many clients use at once, or that one attacker floods.
func loadMeasures() []measure {
	return []measure{
		{name: "load/storm", unit: "s", lower: true, alone: true, rounds: 1, goal: 15, run: func(st *stage) (sample, error) { return runStorm(st, false) }},
		{name: "load/storm-lookup", unit: "s", lower: true, alone: true, rounds: 1, goal: 25, run: func(st *stage) (sample, error) { return runStorm(st, true) }},
		{name: "load/strangers", unit: "sessions", alone: true, rounds: 1, goal: 40, quick: true, run: runStrangers},
		{name: "load/handshakes", unit: "1/s", alone: true, rounds: 3, goal: 5000, quick: true, run: func(st *stage) (sample, error) { return runHandshakes(st, false) }},
		{name: "load/handshakes-lookup", unit: "1/s", alone: true, rounds: 3, goal: 4500, run: func(st *stage) (sample, error) { return runHandshakes(st, true) }},
		{name: "load/flood", unit: "of control", rounds: 3, goal: 0.9, quick: true, run: runFlood},
		{name: "load/flood-p99", unit: "ms", lower: true, rounds: 3, goal: 5, run: runFloodPing},
		{name: "load/cookies", unit: "x", alone: true, goal: 1.7, quick: true, run: runCookies},
		{name: "load/tenants", unit: "KiB", lower: true, alone: true, rounds: 3, goal: 12, quick: true, run: runTenants},
		{name: "load/staged", unit: "lost", lower: true, alone: true, quick: true, run: runStaged},
		{name: "load/wake", unit: "lost", lower: true, alone: true, quick: true, run: runWake},
	}
}

// A loadTunnel is a wireguard.Tunnel that counts the UDP packets that arrive. It sends nothing itself: its user calls
// Device.Send.
type loadTunnel struct {
	dev *wireguard.Device
	n   atomic.Int64
}

func (t *loadTunnel) Attach(d *wireguard.Device) { t.dev = d }
func (t *loadTunnel) MTU() int                   { return mtu }
func (t *loadTunnel) Close() error               { return nil }

func (t *loadTunnel) WritePackets(pkts [][]byte) (int, error) {
	for _, p := range pkts {
		if p[9] == packet.UDP {
			t.n.Add(1)
		}
	}
	return len(pkts), nil
}

// A windowSocket is a wireguard.Bind and its socket, both in memory. It calls the function in its field next for each message that
// it delivers to the device, until the function returns nil. Each message has a different source address. The socket keeps a fixed
// number of messages in flight: for each message that the device sends, it delivers one more.
type windowSocket struct {
	next   func() []byte
	credit atomic.Int64  // number of messages that the socket may deliver now
	more   chan struct{} // holds a token once credit is no longer zero, which wakes a waiting Receive
	count  int           // number of messages that the socket has delivered
	sent   atomic.Int64  // number of messages that the device has sent
	closed chan struct{}
	once   sync.Once
	trains []wireguard.Train
}

func newWindowSocket(inFlight int, next func() []byte) *windowSocket {
	s := &windowSocket{next: next, more: make(chan struct{}, 1), closed: make(chan struct{})}
	s.allow(int64(inFlight))
	return s
}

// allow lets the socket deliver n more messages.
func (s *windowSocket) allow(n int64) {
	if n > 0 && s.credit.Add(n) == n {
		select {
		case s.more <- struct{}{}:
		default:
		}
	}
}

func (s *windowSocket) Listen(uint16) (wireguard.Socket, error) { return s, nil }
func (s *windowSocket) Port() uint16                            { return 1 }
func (s *windowSocket) Receivers() []wireguard.Receiver         { return []wireguard.Receiver{s} }
func (s *windowSocket) Close() error                            { s.once.Do(func() { close(s.closed) }); return nil }

func (s *windowSocket) Send(ts []wireguard.Train) {
	s.sent.Add(int64(len(ts)))
	s.allow(int64(len(ts)))
}

func (s *windowSocket) Receive() ([]wireguard.Train, error) {
	credit := s.credit.Swap(0)
	for ; credit == 0; credit = s.credit.Swap(0) {
		select {
		case <-s.more:
		case <-s.closed:
			return nil, net.ErrClosed
		}
	}
	s.trains = s.trains[:0]
	for credit > 0 && len(s.trains) < wireBatch {
		m := s.next()
		if m == nil {
			if len(s.trains) == 0 {
				return nil, nil // there are no more messages, so forget the credit
			}
			break
		}
		credit--
		s.count++
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, 64 + byte(s.count>>16)&63, byte(s.count >> 8), byte(s.count)}), 1000)
		s.trains = append(s.trains, wireguard.Train{Data: m, Size: len(m), Endpoint: wireguard.EndpointOf(from)})
	}
	s.allow(credit)
	return s.trains, nil
}

// runHandshakes measures how many initiations one core answers per second. Each of st.Peers callers (clients; see the type caller)
// sends two initiations, and only the second round is measured, because in the first round the device computes the shared secrets
// of the static keys. If lookup is true, the device does not know its peers beforehand: its Config.Lookup finds them without delay.
// Then there is only one round, and it is measured. 24 initiations are in flight, so that the device is not under load.
func runHandshakes(st *stage, lookup bool) (sample, error) {
	key := wireguard.NewPrivateKey()
	all := newCallers(st.Peers, key.Public())
	var messages [][]byte
	rounds := 2
	if lookup {
		rounds = 1
	}
	for range rounds {
		each(all, func(c *caller) { c.call(0) })
		for _, c := range all {
			messages = append(messages, c.message)
		}
	}
	first := len(messages) - len(all) // number of initiations before the measured round
	begin := make(chan struct{})      // closed when the measured round begins
	var s *windowSocket
	s = newWindowSocket(24, func() (m []byte) {
		if len(messages) == len(all) {
			if len(s.trains) > 0 {
				return nil
			}
			select {
			case <-begin:
			case <-s.closed:
				return nil
			}
		}
		if len(messages) == 0 {
			return nil
		}
		m, messages = messages[0], messages[1:]
		return m
	})
	c := wireguard.Config{PrivateKey: key, Tunnel: new(loadTunnel), Bind: s}
	if lookup {
		c.Lookup = func(_ context.Context, key wireguard.PublicKey) (wireguard.PeerConfig, error) {
			return wireguard.PeerConfig{PublicKey: key}, nil
		}
	} else {
		c.Peers = configs(all)
	}
	n := &ourNode{}
	if err := n.up(st, c); err != nil {
		return sample{}, err
	}
	await := func(answers int) error {
		for t := time.Now(); s.sent.Load() < int64(answers); time.Sleep(time.Millisecond) {
			if time.Since(t) > 30*time.Second {
				return fmt.Errorf("%d initiations were answered, want %d; drops %v", s.sent.Load(), answers, n.dev.Status().Drops)
			}
		}
		return nil
	}
	if err := await(first); err != nil {
		return sample{}, err
	}
	time.Sleep(30 * time.Millisecond) // the device drops an initiation that arrives within 20 ms of the same peer's previous one
	t, c0, n0 := time.Now(), cpuTime(), s.sent.Load()
	close(begin)
	if err := await(first + len(all)); err != nil {
		return sample{}, err
	}
	used := span{n: float64(s.sent.Load() - n0), took: time.Since(t), cpu: cpuTime() - c0}
	return sample{used.n / used.cpu.Seconds(), []aside{
		{Name: "on all cores", Unit: "1/s", Value: used.n / used.took.Seconds()},
		mustBeZero("dropped", int64(n.dev.Status().Drops.Total())),
	}}, nil
}

// runCookies measures how many forged initiations per second a device under load answers with cookies. The figure is the rate on
// two cores divided by the rate on one core. runCookies measures three times on one core and three times on two, alternately, so
// that a change of the machine's speed affects both. It compares the medians.
func runCookies(st *stage) (sample, error) {
	var rates [2][]float64
	for range 3 {
		for i := range rates {
			procs := runtime.GOMAXPROCS(i + 1)
			rate, err := cookieRate(st)
			runtime.GOMAXPROCS(procs)
			if err != nil {
				return sample{}, err
			}
			rates[i] = append(rates[i], rate)
		}
	}
	one, two := median(rates[0]), median(rates[1])
	return sample{two / one, []aside{
		{Name: "on one core", Unit: "1/s", Value: one},
		{Name: "on two", Unit: "1/s", Value: two},
		{Name: "cookie crypto alone", Unit: "x", Value: cookieCrypto(2, st.Span/2) / cookieCrypto(1, st.Span/2)},
	}}, nil
}

// cookieCrypto returns how often per second several goroutines together do the cryptography of a cookie reply: mac1, the cookie,
// mac2 and the seal. The goroutines share no memory while they work, so only the machine's cores limit the result.
func cookieCrypto(goroutines int, span time.Duration) float64 {
	var done atomic.Int64
	var all sync.WaitGroup
	begin := time.Now()
	for range goroutines {
		all.Go(func() {
			key := make([]byte, chacha20poly1305.KeySize)
			a, err := chacha20poly1305.NewX(key)
			if err != nil {
				panic(err) // impossible: the key has the right length
			}
			var m, sealed [initiationSize]byte
			n := int64(0)
			for ; n%64 != 0 || time.Since(begin) < span; n++ {
				mac1 := keyed(key, m[:initiationSize-32])
				cookie := keyed(key, m[:6])
				mac2 := keyed(cookie[:], m[:initiationSize-16])
				copy(m[:], mac2[:])
				a.Seal(sealed[:0], m[:chacha20poly1305.NonceSizeX], cookie[:], mac1[:])
			}
			done.Add(n)
		})
	}
	all.Wait()
	return float64(done.Load()) / time.Since(begin).Seconds()
}

func cookieRate(st *stage) (float64, error) {
	key := wireguard.NewPrivateKey()
	pool, i := forgeries(key.Public(), 1024), 0
	s := newWindowSocket(4096, func() []byte {
		i++
		return pool[i%len(pool)]
	})
	n := &ourNode{}
	if err := n.up(st, wireguard.Config{PrivateKey: key, Tunnel: new(loadTunnel), Bind: s}); err != nil {
		return 0, err
	}
	defer n.dev.Close()
	c, err := count(&s.sent, st.Warm, st.Span)
	return c.n / c.took.Seconds(), err
}

// runStaged measures how many of the first 5 packets to a peer are lost while the device also has packets waiting for absent
// peers: 128 packets for each of 64 peers that do not answer. One goroutine sends all packets, and it keeps sending to the absent
// peers.
func runStaged(st *stage) (sample, error) {
	keys := [2]wireguard.PrivateKey{wireguard.NewPrivateKey(), wireguard.NewPrivateKey()}
	var nodes [2]*ourNode
	var tunnels [2]*loadTunnel
	for i := range nodes {
		nodes[i], tunnels[i] = &ourNode{}, new(loadTunnel)
		if err := nodes[i].up(st, wireguard.Config{PrivateKey: keys[i], Tunnel: tunnels[i], Bind: countedBind{st}}); err != nil {
			return sample{}, err
		}
	}
	absent, _ := identities(64)
	for i := range absent {
		absent[i].endpoint = netip.AddrPortFrom(loopback, 9)
	}
	if err := nodes[0].plan(absent...)(); err != nil {
		return sample{}, err
	}
	dev := nodes[0].dev
	b := dev.NewBatch()
	send := func(to netip.Addr, n int) error {
		p := newFlow(1300, addrA, to).template
		for range n {
			b.Append(p)
		}
		return dev.Send(b)
	}
	fill := func() error {
		for _, p := range absent {
			if err := send(p.prefix.Addr(), 128); err != nil {
				return err
			}
		}
		return nil
	}
	if err := fill(); err != nil {
		return sample{}, err
	}
	const wanted = 5
	if err := nodes[1].plan(peer{keys[0].Public(), netip.AddrPortFrom(loopback, nodes[0].port()), netip.PrefixFrom(addrA, 32)})(); err != nil {
		return sample{}, err
	}
	if err := nodes[0].plan(peer{keys[1].Public(), netip.AddrPortFrom(loopback, nodes[1].port()), netip.PrefixFrom(addrB, 32)})(); err != nil {
		return sample{}, err
	}
	if err := send(addrB, wanted); err != nil {
		return sample{}, err
	}
	for t := time.Now(); tunnels[1].n.Load() < wanted && time.Since(t) < 10*time.Second; time.Sleep(time.Millisecond) {
		if err := fill(); err != nil {
			return sample{}, err
		}
	}
	lost := wanted - tunnels[1].n.Load()
	return sample{float64(lost), []aside{mustBeZero("lost", lost)}}, nil
}

// wakes is how often runWake calls Device.Wake of each device.
const wakes = 10

// runWake measures how many packets are lost when Device.Wake is called during traffic in both directions. It calls Wake of the
// two devices in turn, ten times each. In each direction, at most 256 packets are in flight, because a socket drops packets when
// its buffer is full.
func runWake(st *stage) (sample, error) {
	ab, ba := newFlow(mtu, addrA, addrB), newFlow(mtu, addrB, addrA)
	ab.unordered, ba.unordered = true, true // while a device replaces its socket, the old and the new socket both deliver packets
	a, b := newPlains(ab, ba)
	var nodes [2]*ourNode
	keys := [2]wireguard.PrivateKey{wireguard.NewPrivateKey(), wireguard.NewPrivateKey()}
	for i, p := range []*plain{a, b} {
		n, err := st.lib.node(st, nodeConfig{key: keys[i], plain: p})
		if err != nil {
			return sample{}, err
		}
		nodes[i] = n.(*ourNode)
	}
	if err := introduce(nodes[0], nodes[1], keys[0], keys[1]); err != nil {
		return sample{}, err
	}
	flows := []*flow{ab, ba}
	for _, f := range flows {
		f.allow(1)
		if err := f.drain(10 * time.Second); err != nil {
			return sample{}, err
		}
	}
	for _, f := range flows {
		f.open(256)
	}
	for range wakes {
		for _, n := range nodes {
			time.Sleep(st.Span / 20)
			if err := n.dev.Wake(); err != nil {
				return sample{}, err
			}
		}
	}
	time.Sleep(st.Span / 20)
	lost, sent := int64(0), int64(0)
	for _, f := range flows {
		f.stop()
	}
	for _, f := range flows {
		if err := f.drain(time.Second); err != nil && err != errNothingArrives {
			return sample{}, err
		}
		lost += f.missing()
		sent += f.received.Load()
	}
	return sample{float64(lost), []aside{
		{Name: "arrived", Unit: "packets", Value: float64(sent)},
		mustBeZero("lost", lost),
	}}, nil
}
