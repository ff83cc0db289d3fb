package wireguard_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// heal undoes the effects of the earlier steps of an episode. It asserts that within 30 s a new packet arrives in each direction
// between any two nodes.
func (s *sim) heal(_, _ *simNode, r *rand.Rand) {
	s.net.Mend(nil, nil)
	s.calmWire()
	if left := s.drain(); left > 0 {
		s.fail(fmt.Sprintf("the network does not become empty: %d packets are in flight", left))
	}
	for _, n := range s.all {
		s.must(n.Up())
		if n.slept {
			n.slept = false
			s.must(n.Wake())
		}
		wireguard.ForceLoad(n.Device, false)
		for _, o := range s.others(n) {
			s.tick()
			s.reconcile(n, o)
		}
	}
	for _, n := range s.all {
		for _, o := range s.all[:n.i] {
			s.tick()
			s.introduce(n, o, r)
		}
	}
	first := s.id + 1
	s.judge.await(first)
	for since := s.now(); ; s.advance(time.Second) {
		broken := s.broken()
		if len(broken) == 0 {
			break
		}
		if s.now()-since >= healTime {
			s.fail(fmt.Sprintf("within %v, no new packet arrived between these nodes: %s", healTime, broken))
		}
		s.greet(r)
	}
	s.calm(r)
}

// drain waits for at most 40 s until no packet is in flight, and returns the number of packets that are still in flight. A late
// packet from an old address of its sender would do harm, because it is authentic. As in Linux, it would change the sender's
// endpoint back after introduce has set this endpoint, and it would count as an answer to data.
func (s *sim) drain() (left int) {
	for i := 0; i < 40 && s.net.Stats().UnderWay > 0; i++ {
		s.advance(time.Second)
	}
	return s.net.Stats().UnderWay
}

// reconcile corrects n's configuration of its peer o, except the endpoint.
func (s *sim) reconcile(n, o *simNode) {
	v := &n.views[o.i]
	if v.present && v.gen != o.gen {
		s.forget(n, o)
	}
	v.gen, v.psk = o.gen, max(v.psk, o.views[n.i].psk)
	s.learn(n, o, wireguard.Endpoint{})
}

// introduce is for two nodes of which neither knows the other's endpoint. It configures one node's endpoint at the other node.
// The endpoint of a node behind a NAT cannot be configured, because it is not known outside.
func (s *sim) introduce(n, o *simNode, r *rand.Rand) {
	knows := func(n, o *simNode) bool {
		st, ok := n.Peer(s.key(o.i, o.gen).Public())
		return ok && o != s.natted && st.Endpoint.Addr == o.at().Addr
	}
	if knows(n, o) || knows(o, n) {
		return
	}
	if n != s.natted && (o == s.natted || r.IntN(2) == 0) {
		n, o = o, n
	}
	s.tellOf(n, o, wireguard.PeerChange{Endpoint: ptr(o.at())})
}

// broken returns the names of the pairs of nodes between which no new packet has arrived since heal called judge.await.
func (s *sim) broken() (pairs []string) {
	for _, n := range s.all {
		for _, o := range s.others(n) {
			if !s.judge.hasFresh(n.i, o.i) {
				pairs = append(pairs, n.name+" to "+o.name)
			}
		}
	}
	return pairs
}

// greet sends a packet in each direction between any two nodes. If strangersCome was called before, it also sends forgeries to
// each node.
func (s *sim) greet(r *rand.Rand) {
	for _, n := range s.all {
		if s.besieged {
			s.tick()
			s.forge(n, 5, r)
		}
		for _, o := range s.others(n) {
			s.say(n, tunnel, s.parcel(n, o, tunnel, r.IntN(100), r))
		}
	}
}

// calm sends packets for a while through tunnels that work. If no machine sleeps and the network does not reorder messages, it
// then checks that no packets are lost. Only packets in a session that the receiver has already removed may be lost. That can
// happen when initiations cross: Linux and this library then free the current keypair, because a responder's `next` keypair takes
// the place of `previous`.
func (s *sim) calm(r *rand.Rand) {
	s.pass(2 * time.Second)
	first, before := s.id+1, s.unknown()
	until := s.now() + time.Duration(r.Float64()*float64(pick(r, 0, 10*time.Second, 250*time.Second)))
	for s.now() < until {
		s.greet(r)
		s.pass(s.between(4 * time.Second))
	}
	s.advance(5*time.Second + jitter + 4*s.delay)
	if n, lost := s.judge.lost(first); s.awake && s.orderly && n > s.unknown()-before {
		s.fail("although the network loses no packets, " + lost)
	}
}

// unknown returns how many messages the devices have dropped because the session of the message was already removed or expired. It
// also counts the forgeries of strangers that have an unknown session index.
func (s *sim) unknown() (n uint64) {
	for _, o := range s.all {
		d := o.Status().Drops
		n += d[wireguard.DropUnknownIndex] + d[wireguard.DropExpiredKey]
	}
	return n
}

// late sends a packet from n to o. The packet arrives after the delay d.
func (s *sim) late(n, o *simNode, d time.Duration, r *rand.Rand) {
	s.net.SetPath(n.end, o.end, pipe.Conditions{Delay: d})
	s.say(n, tunnel, s.parcel(n, o, tunnel, 10, r))
	s.advance(2 * time.Millisecond)
	s.calmWire()
}

// heal configures the endpoint of one node at another node. A packet that was in flight before heal must not undo that. The test
// checks two cases: one of the nodes is behind a NAT, or both have moved.
func TestHealOutlastsLatePackets(t *testing.T) {
	for name, harm := range map[string]func(s *sim, a, b *simNode, r *rand.Rand){
		"NAT": func(s *sim, a, b *simNode, r *rand.Rand) {
			s.goBehind(b, a, r)
			s.heal(a, b, r)
			s.late(a, b, 3*time.Second, r)
			s.changePort(a, b, r)
		},
		"both move": func(s *sim, a, b *simNode, r *rand.Rand) {
			s.late(b, a, time.Second, r)
			s.changePort(b, a, r)
			s.late(b, a, time.Millisecond, r) // a learns the new endpoint of b
			s.late(a, b, 9*time.Second, r)
			s.advance(time.Second) // the first packet arrives, and a changes back to b's old endpoint
			s.changePort(a, b, r)
		},
	} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprint(name, " ", seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSim(t, &schedule{seed: 1, nodes: 2, delay: time.Millisecond})
					a, b, r := s.all[0], s.all[1], rand.New(rand.NewPCG(seed, 1))
					s.heal(a, b, r) // makes a session
					harm(s, a, b, r)
					s.heal(a, b, r)
					s.play()
				})
			})
		}
	}
}

// TestDrainGivesUp checks that drain returns the number of packets that are still in flight after its time limit.
func TestDrainGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, &schedule{seed: 1, nodes: 2, delay: time.Millisecond})
		a, b, r := s.all[0], s.all[1], rand.New(rand.NewPCG(1, 1))
		s.heal(a, b, r) // makes a session
		s.late(a, b, time.Minute, r)
		if left := s.drain(); left != 1 {
			t.Errorf("%d packets are in flight, want 1: the late one", left)
		}
		if left := s.drain(); left != 0 {
			t.Errorf("%d packets are in flight after all have arrived, want 0", left)
		}
		s.play()
	})
}
