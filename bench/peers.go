package main

import (
	"time"

	"github.com/seed-86b749af/wireguard"
)

func peersMeasures() []measure {
	return []measure{{name: "peers/add", unit: "µs/peer", lower: true, run: runAdd}}
}

// runAdd measures how long a call takes, per peer, that adds many peers to a device that is up. After the call, it checks that
// each peer's prefix leads to the peer. An aside shows calls with one peer each. The input of a call, which is text for
// wireguard-go, is prepared beforehand.
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
	return sample{each(together), []aside{{Name: "one a call", Unit: "µs/peer", Value: each(singly)}}}, nil
}
