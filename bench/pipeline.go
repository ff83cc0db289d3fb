package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// window is the largest number of packets in flight over sockets. It is limited because sockets drop packets when their buffers
// are full.
const window = 1024

// patience is a waiting time. If no packet arrives for that long, the missing packets count as lost.
const patience = 2 * time.Second

var (
	loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

	addrA = netip.AddrFrom4([4]byte{10, 99, 0, 1})
	addrB = netip.AddrFrom4([4]byte{10, 99, 0, 2})
)

func pipelineMeasures() (ms []measure) {
	for _, size := range []int{1420, 64} {
		ms = append(ms, measure{
			name:      fmt.Sprintf("pipeline/%d", size),
			unit:      "packets/s",
			run:       func(st *stage) (sample, error) { return runPipeline(st, size) },
			bound:     func(st *stage) (sample, error) { return runCrypto(st, size) },
			boundName: "sealing and opening alone",
		})
	}
	return append(ms, measure{name: "udp/1420", unit: "packets/s", run: runUDP})
}

// tunnel brings up two nodes, a and b, that are peers of each other. They communicate over w, or over loopback sockets if w is
// nil. tunnel returns when the first packet from a has reached b.
func tunnel(st *stage, w *wire, ab, ba *flow) error {
	a, b := newPlains(ab, ba)
	ca := nodeConfig{key: wireguard.NewPrivateKey(), plain: a}
	cb := nodeConfig{key: wireguard.NewPrivateKey(), plain: b}
	if w != nil {
		ca.end, cb.end = &w.ends[0], &w.ends[1]
	}
	na, err := st.lib.node(st, ca)
	if err != nil {
		return err
	}
	nb, err := st.lib.node(st, cb)
	if err != nil {
		return err
	}
	if err := introduce(na, nb, ca.key, cb.key); err != nil {
		return err
	}
	ab.allow(1)
	if err := ab.drain(10 * time.Second); err != nil {
		return fmt.Errorf("wait for the handshake and the first packet: %w", err)
	}
	return nil
}

// introduce makes a and b peers of each other. Their endpoints are loopback addresses.
func introduce(a, b node, ka, kb wireguard.PrivateKey) error {
	at := func(n node) netip.AddrPort {
		return netip.AddrPortFrom(loopback, n.port())
	}
	if err := a.plan(peer{kb.Public(), at(b), netip.PrefixFrom(addrB, 32)})(); err != nil {
		return err
	}
	return b.plan(peer{ka.Public(), at(a), netip.PrefixFrom(addrA, 32)})()
}

// runPipeline measures how many packets per second a tunnel over a wire in memory delivers, if its source always has more
// packets. An aside shows the rate with at most 1,024 packets in flight. Full queues cause a part of the difference between the
// two rates.
func runPipeline(st *stage, size int) (sample, error) {
	ab, ba := newFlow(size, addrA, addrB), newFlow(size, addrB, addrA)
	if err := tunnel(st, newWire(st, st.lib.landings()), ab, ba); err != nil {
		return sample{}, err
	}
	bounded, err := ab.measure(window, st.Warm/2, st.Span/2)
	if err != nil {
		return sample{}, err
	}
	s, err := ab.measure(0, st.Warm, st.Span)
	s.Aside = append(s.Aside, aside{Name: "with 1,024 in flight", Unit: "packets/s", Value: bounded.Value, Apart: true})
	return s, err
}

// runUDP measures how many packets per second a tunnel over loopback sockets delivers.
func runUDP(st *stage) (sample, error) {
	ab, ba := newFlow(mtu, addrA, addrB), newFlow(mtu, addrB, addrA)
	if err := tunnel(st, nil, ab, ba); err != nil {
		return sample{}, err
	}
	s, err := ab.measure(window, st.Warm, st.Span)
	s.Aside = append(s.Aside, st.calls()...)
	return s, err
}

// measure opens the flow, counts the packets that arrive, and then stops the flow. It reports all losses since the flow was made.
// A lost packet counts as in flight for good, because the source does not learn of the loss.
func (f *flow) measure(inFlight int64, warm, during time.Duration) (sample, error) {
	f.open(inFlight)
	c, err := count(&f.received, warm, during)
	f.stop()
	if err != nil {
		return sample{}, err
	}
	if err := f.drain(patience); err != nil && !errors.Is(err, errNothingArrives) {
		return sample{}, err
	}
	return sample{c.n / c.took.Seconds(), []aside{
		{Name: "cpu", Unit: "µs/packet", Value: c.cpu.Seconds() * 1e6 / c.n},
		mustBeZero("lost", f.missing()),
		mustBeZero("out of order", f.late.Load()),
		mustBeZero("mangled", f.mangled.Load()),
	}}, nil
}

func mustBeZero(name string, n int64) aside {
	return aside{Name: name, Value: float64(n), Wrong: n != 0}
}
