package wireguard_test

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A kind describes a kind of step. It has the function that a step of this kind calls with two nodes (do), and says which
// schedules use the kind.
type kind struct {
	name     string
	weight   int
	do       func(s *sim, n, o *simNode, r *rand.Rand)
	always   bool // every schedule uses the kind
	reorders bool // only schedules whose network reorders messages use the kind
	sleeps   bool // only schedules in which machines sleep use the kind
	crowds   bool // only crowded schedules use the kind
}

// heal is the kind of the last step of each episode.
var heal = &kind{name: "heal", do: (*sim).heal}

var kinds = []*kind{
	{name: "burst", weight: 6, always: true, do: (*sim).burst},
	{name: "crowd", weight: 3, crowds: true, do: (*sim).crowd},
	{name: "spoof", weight: 2, do: (*sim).spoof},
	{name: "ask", weight: 1, do: func(s *sim, n, o *simNode, r *rand.Rand) { s.ask(n, o, time.Duration(r.Int64N(int64(time.Minute)))) }},

	{name: "loss", weight: 3, do: (*sim).loss},
	{name: "weather", weight: 4, reorders: true, do: (*sim).weather},
	{name: "path", weight: 2, reorders: true, do: (*sim).path},
	{name: "replay", weight: 3, reorders: true, do: (*sim).replayOld},
	{name: "clear", weight: 2, do: func(s *sim, n, o *simNode, r *rand.Rand) { s.calmWire() }},
	{name: "cut", weight: 2, do: (*sim).cut},
	{name: "mend", weight: 2, do: func(s *sim, n, o *simNode, r *rand.Rand) { s.net.Mend(nil, nil) }},

	{name: "roam", weight: 2, do: (*sim).roam},
	{name: "nat", weight: 2, do: (*sim).goBehind},
	{name: "rebind", weight: 2, do: func(s *sim, n, o *simNode, r *rand.Rand) { s.must(s.nat.Rebind()) }},
	{name: "port", weight: 2, do: (*sim).changePort},

	{name: "restart", weight: 2, do: (*sim).reboot},
	{name: "down", weight: 2, do: func(s *sim, n, o *simNode, r *rand.Rand) { n.Down() }},
	{name: "up", weight: 2, do: func(s *sim, n, o *simNode, r *rand.Rand) { s.must(n.Up()) }},
	{name: "wake", weight: 1, do: func(s *sim, n, o *simNode, r *rand.Rand) { s.must(n.Wake()) }},
	{name: "sleep", weight: 3, sleeps: true, do: (*sim).sleep},
	{name: "load", weight: 2, do: func(s *sim, n, o *simNode, r *rand.Rand) { wireguard.ForceLoad(n.Device, r.IntN(3) > 0) }},

	{name: "rekey", weight: 2, do: (*sim).rekey},
	{name: "preshared", weight: 2, do: (*sim).preshared},
	{name: "remove", weight: 2, do: (*sim).removePeer},
	{name: "readd", weight: 2, do: (*sim).readd},
	{name: "allowed", weight: 2, do: (*sim).moveAllowed},
	{name: "keepalive", weight: 1, do: (*sim).keepalive},

	{name: "strangers", weight: 2, do: (*sim).strangersCome},
	{name: "greedy", weight: 2, do: (*sim).greed},
	{name: "flap", weight: 1, do: (*sim).flap},
}

// burst sends packets of all sizes from n to o, and in some cases also from o to n.
func (s *sim) burst(n, o *simNode, r *rand.Rand) {
	for range 1 + r.IntN(3) {
		stream := r.IntN(3)
		var ps [][]byte
		for range 1 + r.IntN(pick(r, 1, 8, 40, 200)) {
			ps = append(ps, s.parcel(n, o, stream, pick(r, 0, r.IntN(100), r.IntN(1364), 1364, r.IntN(4000)), r))
		}
		s.say(n, stream, ps...)
		n, o = o, n
	}
}

// crowd sends packets from n to random nodes, on several goroutines at the same time.
func (s *sim) crowd(n, o *simNode, r *rand.Rand) {
	var wg sync.WaitGroup
	for stream := push; stream < push+4; stream++ {
		var ps [][]byte
		for range 1 + r.IntN(40) {
			ps = append(ps, s.parcel(n, pick(r, s.others(n)...), stream, r.IntN(300), r))
		}
		wg.Go(func() {
			for chunk := range slices.Chunk(ps, 7) {
				s.say(n, stream, chunk...)
			}
		})
	}
	var ps [][]byte
	for range 10 {
		ps = append(ps, s.parcel(n, o, tunnel, r.IntN(1300), r))
	}
	s.say(n, tunnel, ps...)
	wg.Wait()
}

// spoof sends packets from n to o whose source is the address of another node. o may deliver them only if its allowed IPs give
// that address to n.
func (s *sim) spoof(n, o *simNode, r *rand.Rand) {
	for range 1 + r.IntN(4) {
		s.say(n, tunnel, s.parcelFrom(n, pick(r, s.others(n)...), o, tunnel, 20, r), s.parcel(n, o, tunnel, 20, r))
	}
}

// calmWire resets all conditions of the network except the delay.
func (s *sim) calmWire() {
	s.net.SetConditions(pipe.Conditions{Delay: s.delay})
	for _, n := range s.all {
		for _, o := range s.all {
			s.net.ResetPath(n.end, o.end)
		}
	}
}

// loss sets conditions under which the network loses messages but keeps their order.
func (s *sim) loss(n, o *simNode, r *rand.Rand) {
	s.net.SetConditions(pipe.Conditions{
		Delay: s.delay, Loss: pick(r, 0, 0.01, 0.1, 0.3, 0.6), MTU: pick(r, 0, 0, 1400, 600),
		RefuseTooBig: r.IntN(3) == 0, CE: pick(r, 0, 0.3),
	})
}

func (s *sim) weatherOf(r *rand.Rand) pipe.Conditions {
	return pipe.Conditions{
		Delay:     pick(r, s.delay, s.delay, 400*time.Millisecond),
		Jitter:    pick(r, 0, 5*time.Millisecond, 300*time.Millisecond),
		Loss:      pick(r, 0, 0, 0.05, 0.3),
		Duplicate: pick(r, 0, 0.1, 1),
		Reorder:   pick(r, 0, 0.2),
		ReorderBy: pick(r, 0, 50*time.Millisecond, 3*time.Second, 20*time.Second),
		MTU:       pick(r, 0, 0, 0, 1000),
		Rate:      pick(r, 0, 0, 20_000, 1_000_000),
	}
}

func (s *sim) weather(n, o *simNode, r *rand.Rand) { s.net.SetConditions(s.weatherOf(r)) }

func (s *sim) path(n, o *simNode, r *rand.Rand) { s.net.SetPath(n.end, o.end, s.weatherOf(r)) }

// replayOld sends old messages again, from their own source address or from another one.
func (s *sim) replayOld(n, o *simNode, r *rand.Rand) {
	s.mu.Lock()
	samples := slices.Clone(s.samples)
	s.mu.Unlock()
	for range min(len(samples), 1+r.IntN(10)) {
		m := pick(r, samples...)
		s.must(s.net.Inject(pick(r, m.src, m.src, stranger), pick(r, m.dst, m.dst, n.at().Addr), m.data))
	}
}

func (s *sim) cut(n, o *simNode, r *rand.Rand) {
	switch r.IntN(4) {
	case 0:
		s.net.Cut(n.end, o.end)
	case 1:
		s.net.CutOneWay(n.end, o.end)
	case 2:
		s.net.Cut(n.end, nil)
	case 3:
		s.net.Cut(nil, nil)
	}
}

// roam moves n to another address, and sometimes o at the same time.
func (s *sim) roam(n, o *simNode, r *rand.Rand) {
	for _, m := range []*simNode{n, o}[:1+r.IntN(2)] {
		if m == s.natted {
			s.natted = nil
		}
		s.must(m.end.MoveBehind(nil, netip.AddrFrom4([4]byte{198, 51, byte(m.i), byte(1 + r.IntN(200))})))
	}
}

// goBehind moves n behind the NAT, if no other node is behind it.
func (s *sim) goBehind(n, o *simNode, r *rand.Rand) {
	if s.natted == nil {
		s.natted = n
		s.must(n.end.MoveBehind(s.nat, netip.AddrFrom4([4]byte{192, 168, 0, 2})))
	}
}

func (s *sim) changePort(n, o *simNode, r *rand.Rand) {
	port := uint16(2000 + r.IntN(50) + 100*n.i)
	s.must(n.Configure(wireguard.Change{ListenPort: &port}))
	n.port = port
}

// reboot replaces n's device with a new one that has the same configuration, except that endpoints of peers may be missing.
func (s *sim) reboot(n, o *simNode, r *rand.Rand) {
	s.end(n)
	s.settle()
	n.life = &life{n.i, n.life.name, n.life.number + 1}
	n.tun = pipe.NewTunnel(0)
	n.key = s.key(n.i, n.gen)
	n.boot(n.random, s.attach(n))
	s.judge.changing(n.i, func(t map[netip.Prefix]int) { clear(t) }, func() {})
	if r.IntN(2) == 0 {
		s.must(n.Up())
	}
	for _, o := range s.others(n) {
		if at := (wireguard.Endpoint{}); n.views[o.i].present {
			if r.IntN(3) > 0 {
				at = o.at()
			}
			s.learn(n, o, at)
		}
	}
	s.must(n.Up())
}

// sleep moves n's clock forward, as if its machine had been suspended. In three of four cases it then calls Wake. Otherwise the
// device's timers are late until heal calls Wake.
func (s *sim) sleep(n, o *simNode, r *rand.Rand) {
	most := pick(r, time.Minute, 4*time.Minute, time.Hour)
	n.clock.leap(time.Second + time.Duration(r.Int64N(int64(most))))
	if n.slept = r.IntN(4) == 0; !n.slept {
		s.must(n.Wake())
	}
}

// key returns a private key of a node. Each number gen stands for a different key.
func (s *sim) key(node, gen int) (k wireguard.PrivateKey) {
	return sha256.Sum256(fmt.Append(nil, s.seed, node, gen))
}

// psk returns a preshared key of two nodes. Each number gen stands for a different key; 0 means no preshared key.
func (s *sim) psk(n, o *simNode, gen int) (k wireguard.PresharedKey) {
	if gen > 0 {
		k = sha256.Sum256(fmt.Append(nil, s.seed, n.i*o.i, n.i+o.i, "psk", gen))
	}
	return k
}

// rekey gives n another private key. The other nodes get the new public key before that, after that, or later from heal.
func (s *sim) rekey(n, o *simNode, r *rand.Rand) {
	change := func() {
		n.gen++
		n.key = s.key(n.i, n.gen)
		s.must(n.Configure(wireguard.Change{PrivateKey: &n.key}))
	}
	tell := func(gen int) {
		for _, o := range s.others(n) {
			if o.views[n.i].present {
				s.tick()
				s.forget(o, n)
				o.views[n.i].gen = gen
				s.learn(o, n, pick(r, n.at(), wireguard.Endpoint{}))
			}
		}
	}
	wait := time.Duration(r.Float64() * float64(pick(r, 0, time.Second, 20*time.Second)))
	switch r.IntN(3) {
	case 0:
		tell(n.gen + 1)
		s.pass(wait)
		change()
	case 1:
		change()
		s.pass(wait)
		tell(n.gen)
	case 2:
		change()
	}
}

// preshared changes the preshared key of n and o, at both nodes or only at n.
func (s *sim) preshared(n, o *simNode, r *rand.Rand) {
	gen := max(n.views[o.i].psk, o.views[n.i].psk) + 1
	s.setPSK(n, o, gen)
	if r.IntN(3) > 0 {
		s.pass(time.Duration(r.Float64() * float64(pick(r, 0, 0, time.Second, 20*time.Second))))
		s.setPSK(o, n, gen)
	}
}

func (s *sim) setPSK(n, o *simNode, gen int) {
	n.views[o.i].psk = gen
	key := s.psk(n, o, gen)
	s.tellOf(n, o, wireguard.PeerChange{PresharedKey: &key})
}

// tellOf changes n's configuration of its peer o. If n does not have this peer, it does nothing.
func (s *sim) tellOf(n, o *simNode, c wireguard.PeerChange) {
	c.PublicKey, c.UpdateOnly = s.key(o.i, n.views[o.i].gen).Public(), true
	s.must(n.Configure(wireguard.Change{Peers: []wireguard.PeerChange{c}}))
}

// learn makes o a peer of n, or sets n's configuration of its peer o.
func (s *sim) learn(n, o *simNode, at wireguard.Endpoint) {
	v := &n.views[o.i]
	v.present = true
	c := wireguard.PeerConfig{
		PublicKey: s.key(o.i, v.gen).Public(), PresharedKey: s.psk(n, o, v.psk), Endpoint: at, AllowedIPs: o.networks(),
	}
	s.judge.changing(n.i, func(t map[netip.Prefix]int) {
		maps.DeleteFunc(t, func(_ netip.Prefix, i int) bool { return i == o.i })
		for _, p := range c.AllowedIPs {
			t[p] = o.i
		}
	}, func() { s.must(n.SetPeer(c)) })
}

func (s *sim) forget(n, o *simNode) {
	v := &n.views[o.i]
	v.present = false
	s.judge.changing(n.i, func(t map[netip.Prefix]int) {
		maps.DeleteFunc(t, func(_ netip.Prefix, i int) bool { return i == o.i })
	}, func() { s.must(n.RemovePeer(s.key(o.i, v.gen).Public())) })
}

func (s *sim) removePeer(n, o *simNode, r *rand.Rand) { s.forget(n, o) }

func (s *sim) readd(n, o *simNode, r *rand.Rand) {
	if !n.views[o.i].present {
		s.learn(n, o, pick(r, o.at(), wireguard.Endpoint{}))
	}
}

// moveAllowed changes the allowed IPs of one of n's peers, which may be o itself. It gives this peer the prefixes of o or a part
// of them, or takes them from the peer.
func (s *sim) moveAllowed(n, o *simNode, r *rand.Rand) {
	ps := pick(r, o.networks(), o.subnets(), o.subnets())
	to := pick(r, s.others(n)...)
	if !n.views[to.i].present {
		return
	}
	c := wireguard.PeerChange{AllowedIPs: ps}
	change := func(t map[netip.Prefix]int) {
		for _, p := range ps {
			t[p] = to.i
		}
	}
	if r.IntN(3) == 0 {
		c = wireguard.PeerChange{RemoveAllowedIPs: ps}
		change = func(t map[netip.Prefix]int) {
			for _, p := range ps {
				if i, ok := t[p]; ok && i == to.i {
					delete(t, p)
				}
			}
		}
	}
	s.judge.changing(n.i, change, func() { s.tellOf(n, to, c) })
}

func (s *sim) keepalive(n, o *simNode, r *rand.Rand) {
	interval := pick(r, 0, 5*time.Second, 25*time.Second)
	s.tellOf(n, o, wireguard.PeerChange{PersistentKeepalive: &interval})
}
