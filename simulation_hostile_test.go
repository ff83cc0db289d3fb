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

// The simulation has three kinds of attackers: strangers who know the public keys and see all messages, a peer that uses as many
// resources as it can, and a peer that goes down and comes up repeatedly. No attacker may break an invariant of the simulation.
// Tunnels must heal even while the strangers send.

// strangersCome sends forgeries to n. From then on, greet also sends forgeries to every node, while tunnels heal and afterwards.
func (s *sim) strangersCome(n, o *simNode, r *rand.Rand) {
	s.besieged = true
	s.forge(n, 1+r.IntN(60), r)
}

// forge sends forgeries of all message types to n, from many addresses. About half of the handshake messages have a valid mac1.
// Some messages have the index of a real session of n, taken from an earlier message.
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

// greed makes n use as many resources of o as it can: n sends many packets, with its own source addresses and those of other
// nodes, and calls Handshake.
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

// flap takes n down and brings it up again several times, with short pauses.
func (s *sim) flap(n, o *simNode, r *rand.Rand) {
	for range 1 + r.IntN(12) {
		n.Down()
		s.pass(time.Duration(r.Int64N(int64(pick(r, time.Millisecond, time.Second)))))
		s.must(n.Up())
		s.say(n, tunnel, s.parcel(n, o, tunnel, 10, r))
		s.pass(time.Duration(r.Int64N(int64(pick(r, time.Millisecond, 3*time.Second)))))
	}
}

// TestHostileParties simulates two honest nodes and all three kinds of attackers at the same time. Afterwards, within 30 s, a
// packet must arrive in each direction between any two nodes. The nodes must have dropped the strangers' messages with the
// correct reasons.
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
					t.Errorf("seed %d: the victim dropped no message with reason %q", seed, reason)
				}
			}
			s.play()
		})
	}
}
