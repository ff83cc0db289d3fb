package main

import (
	"time"

	"github.com/seed-86b749af/wireguard"
)

func peersMeasures() []measure {
	return []measure{{name: "peers/add", unit: "µs/peer", lower: true, run: runAdd}}
}

// runAdd measures the time that one call takes to add many peers to a device that is up, divided by the number of peers. After the
// call, runAdd checks that the device routes each peer's prefix to that peer. An aside shows the time when each call adds only one
// peer. The input of the calls is prepared beforehand; for wireguard-go, this input is configuration text.
func runAdd(st *stage) (sample, error) {
	peers, _ := identities(st.Peers)
	fresh := func() (node, error) {
		w := newWire(st, st.lib.landings())
		p, _ := newPlains(newFlow(64, addrA, addrB), newFlow(64, addrB, addrA))
		return st.lib.node(st, nodeConfig{key: wireguard.NewPrivateKey(), plain: p, end: &w.ends[0]})
	}
	n, err := fresh()
	if err != nil {
		return sample{}, err
	}
	add := n.plan(peers...)
	t := time.Now()
	if err := add(); err != nil {
		return sample{}, err
	}
	together := time.Since(t)
	if err := n.routes(peers); err != nil {
		return sample{}, err
	}

	if n, err = fresh(); err != nil {
		return sample{}, err
	}
	var calls []func() error
	for _, p := range peers {
		calls = append(calls, n.plan(p))
	}
	t = time.Now()
	for _, call := range calls {
		if err := call(); err != nil {
			return sample{}, err
		}
	}
	singly := time.Since(t)
	each := func(d time.Duration) float64 { return d.Seconds() * 1e6 / float64(len(peers)) }
	return sample{each(together), []aside{{Name: "one per call", Unit: "µs/peer", Value: each(singly)}}}, nil
}
