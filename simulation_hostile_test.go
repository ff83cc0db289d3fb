package wireguard_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// The simulation has three hostile parties: strangers who know the public keys and see the wire, a greedy peer, and a peer that
// goes down and up again and again. They break no invariant of the simulation, and tunnels heal while the strangers keep sending.

// strangersCome sends forgeries to n. From then on strangers send some to every node whenever greet is called, while tunnels heal
// and afterwards.
func (s *sim) strangersCome(n, o *simNode, r *rand.Rand) {
	s.besieged = true
	s.forge(n, 1+r.IntN(60), r)
}

// forge puts forgeries of all types on the wire to n, from many addresses. The mac1 of every second handshake message is valid.
// Some messages name a session of n that was seen on the wire.
func (s *sim) forge(n *simNode, count int, r *rand.Rand) {
	for range count {
		kind := pick(r, 1, 1, 1, 2, 3, 4)
		m := make([]byte, [5]int{0, 148, 92, 64, 32 + 16*r.IntN(80)}[kind])
		for i := range m {
			m[i] = byte(r.Uint32())
		}
		m[0], m[1], m[2], m[3] = byte(kind), 0, 0, 0
		s.mu.Lock()
		if len(s.samples) > 0 && r.IntN(2) == 0 {
			seen := pick(r, s.samples...)
			switch {
			case kind > 2 && seen.data[0] == 4:
				copy(m[4:8], seen.data[4:8])
			case kind == 2 && seen.data[0] < 3:
				copy(m[8:12], seen.data[4:8])
			}
		}
		s.mu.Unlock()
		if kind < 3 && r.IntN(2) == 0 {
			m = signed(m, s.key(n.i, n.gen).Public())
		}
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(100 + r.IntN(100))}), uint16(1+r.IntN(65535)))
		s.must(s.net.Inject(from, n.at().Addr, m))
	}
}

// greed makes n use as much of o as it can: n sends many packets, with its own sources and those of others, and asks for new
// sessions.
func (s *sim) greed(n, o *simNode, r *rand.Rand) {
	for range 1 + r.IntN(6) {
		var ps [][]byte
		for range 200 {
			ps = append(ps, s.parcelFrom(n, pick(r, s.all...), o, tunnel, r.IntN(1300), r))
		}
		s.say(n, tunnel, ps...)
		s.ask(n, o, time.Second)
		s.pass(time.Duration(r.Int64N(int64(200 * time.Millisecond))))
	}
}

// flap takes n down and up several times, with short waits in between.
func (s *sim) flap(n, o *simNode, r *rand.Rand) {
	for range 1 + r.IntN(12) {
		n.Down()
		s.pass(time.Duration(r.Int64N(int64(pick(r, time.Millisecond, time.Second)))))
		s.must(n.Up())
		s.say(n, tunnel, s.parcel(n, o, tunnel, 10, r))
		s.pass(time.Duration(r.Int64N(int64(pick(r, time.Millisecond, 3*time.Second)))))
	}
}

// TestHostileParties has two honest nodes and all three hostile parties at once. Within 30 s a packet arrives in each direction
// between any two nodes, and the strangers' messages were dropped with the right reasons.
func TestHostileParties(t *testing.T) {
	seeds := uint64(6)
	if testkit.Race || testkit.OneThread {
		seeds = 1
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			s := newSim(t, &schedule{seed: 1 + seed, nodes: 4, delay: 20 * time.Millisecond})
			r := rand.New(rand.NewPCG(seed, 3))
			victim, honest, greedy, flapping := s.all[0], s.all[1], s.all[2], s.all[3]
			for _, k := range []string{"strangers", "greedy", "flap"} {
				s.did[k] = true
			}
			s.heal(victim, honest, r)
			for range 4 {
				s.strangersCome(victim, nil, r)
				s.greed(greedy, victim, r)
				s.flap(flapping, victim, r)
				s.strangersCome(honest, nil, r)
			}
			s.heal(victim, honest, r)
			drops := victim.Status().Drops
			for _, reason := range []wireguard.DropReason{wireguard.DropBadMAC, wireguard.DropForged, wireguard.DropUnknownIndex, wireguard.DropSourceNotAllowed} {
				if drops[reason] == 0 {
					t.Errorf("seed %d: nothing was dropped with reason %q", seed, reason)
				}
			}
			s.play()
		})
	}
}
