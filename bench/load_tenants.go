package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

const tenants = 1000

// runTenants measures the memory of 1,000 devices that share one UDP port and have one peer each. The figure is heap and stacks
// per device after garbage collection. Two asides concern the search for the device to which a datagram belongs: the processor
// time that it takes among 1,000 devices, and the time on a port with one device divided by that.
func runTenants(st *stage) (sample, error) {
	n := min(tenants, st.Peers)
	before, err := weigh()
	if err != nil {
		return sample{}, err
	}
	shared, err := (&udp.Bind{Address: loopback}).Share(0)
	if err != nil {
		return sample{}, err
	}
	st.atClose(func() { shared.Close() })
	nodes := make([]*ourNode, n)
	for i := range nodes {
		key := wireguard.NewPrivateKey()
		tenant, err := shared.Join(key.Public())
		if err != nil {
			return sample{}, err
		}
		peers, _ := identities(1)
		c := wireguard.Config{PrivateKey: key, Tunnel: new(loadTunnel), Bind: tenant, IndexPrefix: tenant.IndexPrefix(), Peers: []wireguard.PeerConfig{{
			PublicKey: peers[0].key, AllowedIPs: []netip.Prefix{peers[0].prefix},
		}}}
		nodes[i] = &ourNode{}
		if err := nodes[i].up(st, c); err != nil {
			return sample{}, err
		}
	}
	time.Sleep(st.Warm) // until the devices' goroutines have started
	after, err := weigh()
	if err != nil {
		return sample{}, err
	}
	runtime.KeepAlive(nodes)
	one, err := searchCost(st, 1)
	if err != nil {
		return sample{}, err
	}
	many, err := searchCost(st, n)
	if err != nil {
		return sample{}, err
	}
	each := (after.heap - before.heap + after.stack - before.stack) / float64(n) / 1024
	return sample{each, []aside{
		{Name: "goroutines per device", Value: float64(after.goroutines-before.goroutines) / float64(n)},
		{Name: "processor time to receive a datagram and find its device", Unit: "µs", Value: many},
		{Name: "the time with one device / with all devices", Unit: "x", Value: one / many},
	}}, nil
}

// searchCost returns the processor time in µs that one datagram costs on a port that n devices share, from the sending socket to
// the search for its device. No device is up, so the port finds out to which device a datagram belongs, and then discards the
// datagram. The datagrams of one train belong to different devices.
func searchCost(st *stage, n int) (float64, error) {
	const length, perTrain, inFlight = 64, 64, 1024
	shared, err := (&udp.Bind{Address: loopback, Receivers: 1}).Share(0)
	if err != nil {
		return 0, err
	}
	defer shared.Close()
	prefixes := make([]wireguard.IndexPrefix, n)
	for i := range prefixes {
		tenant, err := shared.Join(wireguard.PublicKey{})
		if err != nil {
			return 0, err
		}
		prefixes[i] = tenant.IndexPrefix()
	}
	from, err := (&udp.Bind{Address: loopback, Receivers: 1}).Listen(0)
	if err != nil {
		return 0, err
	}
	defer from.Close()
	to := wireguard.EndpointOf(netip.AddrPortFrom(loopback, shared.Port()))
	trains := make([]wireguard.Train, (n+perTrain-1)/perTrain)
	for i := range trains {
		b := make([]byte, length*perTrain)
		for k := range perTrain {
			x := prefixes[(i*perTrain+k)%n]
			b[length*k] = 4
			binary.LittleEndian.PutUint32(b[length*k+4:], uint32(x.Value)<<(32-x.Bits))
		}
		trains[i] = wireguard.Train{Data: b, Size: length, Endpoint: to}
	}
	sent := uint64(0)
	began, busy := time.Now(), cpuTime()
	for i := 0; time.Since(began) < st.Span; i = (i + 1) % len(trains) {
		ts := []wireguard.Train{trains[i]}
		if from.Send(ts); ts[0].Err != nil {
			return 0, ts[0].Err
		}
		for sent += perTrain; sent > shared.Stats().Overflow+inFlight; {
			if time.Since(began) > st.Span+10*time.Second {
				return 0, fmt.Errorf("%d of %d datagrams found a device", shared.Stats().Overflow, sent)
			}
			time.Sleep(20 * time.Microsecond)
		}
	}
	return float64((cpuTime() - busy).Microseconds()) / float64(sent), nil
}
