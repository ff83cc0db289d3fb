package main

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard"
)

func sendersMeasures() (ms []measure) {
	for _, n := range []int{1, 2, 4, 16} {
		for _, size := range []int{100, mtu} {
			ms = append(ms, measure{
				name: fmt.Sprintf("senders/%dx%d", n, size), unit: "packets/s", alone: true,
				run: func(st *stage) (sample, error) { return runSenders(st, n, size) },
			})
		}
	}
	return ms
}

// A senderTunnel is the plaintext side of a device. Each of the two devices has one: that of the first device sends with
// Device.Send, and that of the second counts the packets that arrive.
type senderTunnel struct {
	dev *wireguard.Device

	mu       sync.Mutex // guards next
	next     []uint64   // indexed by sender: the number that the sender's next packet should have
	received atomic.Int64
	late     atomic.Int64
}

func (t *senderTunnel) Attach(d *wireguard.Device) { t.dev = d }
func (t *senderTunnel) MTU() int                   { return mtu }
func (t *senderTunnel) Close() error               { return nil }

func (t *senderTunnel) WritePackets(pkts [][]byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range pkts {
		if p[9] != 17 {
			continue // an ICMP error from the device itself
		}
		t.received.Add(1)
		sender, seq := binary.LittleEndian.Uint16(p[seqAt:]), binary.LittleEndian.Uint64(p[seqAt+2:])
		if seq < t.next[sender] {
			t.late.Add(1)
		}
		t.next[sender] = seq + 1
	}
	return len(pkts), nil
}

// runSenders measures n goroutines that send packets of one size to one peer over loopback sockets. Each goroutine sends one
// packet per call, as fast as it can. runSenders counts the packets that arrive, because the device drops packets when it cannot
// seal them fast enough.
func runSenders(st *stage, n, size int) (sample, error) {
	keys := [2]wireguard.PrivateKey{wireguard.NewPrivateKey(), wireguard.NewPrivateKey()}
	var nodes [2]*ourNode
	var tunnels [2]*senderTunnel
	for i := range nodes {
		tunnels[i] = &senderTunnel{next: make([]uint64, n)}
		nodes[i] = &ourNode{}
		if err := nodes[i].up(st, wireguard.Config{PrivateKey: keys[i], Tunnel: tunnels[i], Bind: countedBind{st}}); err != nil {
			return sample{}, err
		}
	}
	if err := introduce(nodes[0], nodes[1], keys[0], keys[1]); err != nil {
		return sample{}, err
	}
	var offered atomic.Int64
	var stop atomic.Bool
	var wg sync.WaitGroup
	st.atCut(func() { stop.Store(true); wg.Wait() })
	for i := range n {
		wg.Go(func() { tunnels[0].flood(i, size, &offered, &stop) })
	}
	if _, err := count(&tunnels[1].received, 0, st.Warm); err != nil {
		return sample{}, err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	o0 := offered.Load()
	s, err := count(&tunnels[1].received, 0, st.Span)
	if err != nil {
		return sample{}, err
	}
	o := float64(offered.Load() - o0)
	runtime.ReadMemStats(&after)
	return sample{s.n / s.took.Seconds(), append([]aside{
		{Name: "cpu", Unit: "µs/packet", Value: s.cpu.Seconds() * 1e6 / s.n},
		{Name: "offered", Unit: "packets/s", Value: o / s.took.Seconds()},
		{Name: "allocations", Unit: "per packet", Value: float64(after.Mallocs-before.Mallocs) / o},
		mustBeZero("out of order", tunnels[1].late.Load()),
	}, st.calls()...)}, nil
}

// flood sends numbered packets until stop is true.
func (t *senderTunnel) flood(sender, size int, offered *atomic.Int64, stop *atomic.Bool) {
	b := t.dev.NewBatch()
	p := newFlow(size, addrA, addrB).template
	binary.LittleEndian.PutUint16(p[seqAt:], uint16(sender))
	for seq := uint64(0); !stop.Load(); seq++ {
		binary.LittleEndian.PutUint64(p[seqAt+2:], seq)
		b.Append(p)
		if t.dev.Send(b) != nil {
			return
		}
		offered.Add(1)
	}
}
