package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
)

func hubMeasures() []measure { return []measure{hubMeasure(100, 0, 0), hubMeasure(10000, 0, 3)} }

// receiversMeasures returns the measures of a hub with several receivers.
func receiversMeasures() []measure { return []measure{hubMeasure(10000, 4, 3)} }

func hubMeasure(n, receivers, rounds int) measure {
	name := fmt.Sprintf("hub/%d", n)
	if receivers > 0 {
		name += fmt.Sprintf("x%d", receivers)
	}
	run := func(st *stage) (sample, error) { return runHub(st, n, receivers) }
	return measure{name: name, unit: "packets/s", run: run, rounds: rounds}
}

// The generator reports these events about the packets that the hub forwards to it. Each report is one byte. reportStall means that
// the generator counts all packets in flight as lost.
const (
	reportStep = iota // returnStep more packets have arrived
	reportStall
	reportLate // a packet's counter was not higher than that of the session's previous packet
)

const returnStep = 4 * manyStep

// A returns counts and reports the packets that a hub forwards to the generator's peers.
type returns struct {
	nests    int // number of nests; peer i is in nest i modulo nests
	received atomic.Int64
	steps    chan<- int
	out      io.Writer
}

// take counts the packets that one call of Receive returned to the nest n. Only one goroutine per nest calls take.
func (r *returns) take(n *nest, ts []wireguard.Train) {
	packets := int64(0)
	for i := range ts {
		for m := range ts[i].Datagrams() {
			if m[0] != 4 || len(m) <= 32 {
				continue
			}
			packets++
			k := (int(binary.LittleEndian.Uint32(m[4:])) - 1) / r.nests
			if k >= len(n.peers) {
				continue
			}
			p, counter := n.peers[k], binary.LittleEndian.Uint64(m[8:])
			if counter < p.heard {
				r.out.Write([]byte{reportLate})
			}
			p.heard = counter + 1
		}
	}
	now := r.received.Add(packets)
	if n := now/manyStep - (now-packets)/manyStep; n > 0 {
		r.steps <- int(n)
	}
	for n := now/returnStep - (now-packets)/returnStep; n > 0; n-- {
		r.out.Write([]byte{reportStep})
	}
}

// A reportReader counts the reports that are written to it.
type reportReader struct{ packets, stalls, late atomic.Int64 }

func (r *reportReader) Write(b []byte) (int, error) {
	for _, what := range b {
		switch what {
		case reportStep:
			r.packets.Add(returnStep)
		case reportStall:
			r.stalls.Add(1)
		case reportLate:
			r.late.Add(1)
		}
	}
	return len(b), nil
}

// runHub measures a hub that forwards packets of 200 bytes between n peers, which send in turn. The hub is in this process, and
// the peers are in another one, the generator. The generator has at most 1,024 packets in flight, and counts the packets that the
// hub forwards to its peers.
func runHub(st *stage, n, receivers int) (sample, error) {
	key := wireguard.NewPrivateKey()
	hub, err := st.lib.node(st, nodeConfig{key: key, relay: true, receivers: receivers})
	if err != nil {
		return sample{}, err
	}
	peers, keys := identities(min(n, st.Peers))
	c := crowd{Hub: key.Public(), Port: hub.port(), Relay: true}
	for i := range peers {
		peers[i].endpoint = netip.AddrPortFrom(loopback, 9) // a placeholder; the peer's first message replaces it
		c.Keys = append(c.Keys, keys[i])
	}
	if err := hub.plan(peers...)(); err != nil {
		return sample{}, err
	}
	var back reportReader
	_, ended, err := gather(st, c, &back)
	if err != nil {
		return sample{}, err
	}
	if err := awaitFirst(&back.packets, ended); err != nil {
		return sample{}, err
	}
	time.Sleep(st.Warm)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s, err := count(&back.packets, 0, st.Span)
	if err != nil {
		return sample{}, err
	}
	runtime.ReadMemStats(&after)
	// Subtract 500 allocations, an allowance for those that do not depend on the number of packets.
	allocations := aside{Name: "allocations", Unit: "per packet", Value: max(0, float64(after.Mallocs-before.Mallocs)-500) / s.n}
	if _, ok := st.lib.(ours); ok {
		allocations.Wrong = allocations.Value > 0.005
	}
	return sample{s.n / s.took.Seconds(), append([]aside{
		{Name: "processor time of the hub", Unit: "µs/packet", Value: s.cpu.Seconds() * 1e6 / s.n, Apart: true},
		allocations,
		{Name: "stalls after losses", Value: float64(back.stalls.Load())},
		mustBeZero("out of order", back.late.Load()),
	}, st.calls()...)}, nil
}
