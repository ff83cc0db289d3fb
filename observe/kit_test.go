package observe_test

import (
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A rig is two devices on one wire: a at 10.0.0.1 and b at 10.0.0.2. a knows the endpoint of b, and b learns the endpoint of a
// from a's first message.
type rig struct {
	t          *testing.T
	network    *pipe.Network
	clock      *pipe.Clock
	a, b       *wireguard.Device
	endA, endB *pipe.End
	tunA, tunB *pipe.Tunnel
	keyA, keyB wireguard.PublicKey
}

var insideA, insideB = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")

// newRig makes a rig. If change is not nil, it changes the configurations before newRig makes the devices. Call newRig in a
// bubble of synctest.
func newRig(t *testing.T, change func(a, b *wireguard.Config)) *rig {
	t.Helper()
	r := &rig{t: t, network: pipe.NewNetwork(pipe.Config{Seed: 1}), tunA: pipe.NewTunnel(1420), tunB: pipe.NewTunnel(1420), clock: pipe.NewClock()}
	r.endA, r.endB = r.network.NewEnd(), r.network.NewEnd()
	config := func(end *pipe.End, tun *pipe.Tunnel) wireguard.Config {
		return wireguard.Config{PrivateKey: wireguard.NewPrivateKey(), Bind: end, Tunnel: tun, ListenPort: 51820, Clock: r.clock}
	}
	a, b := config(r.endA, r.tunA), config(r.endB, r.tunB)
	r.keyA, r.keyB = a.PrivateKey.Public(), b.PrivateKey.Public()
	peer := func(key wireguard.PublicKey, inside netip.Addr) wireguard.PeerConfig {
		return wireguard.PeerConfig{PublicKey: key, AllowedIPs: []netip.Prefix{netip.PrefixFrom(inside, 32)}}
	}
	a.Peers, b.Peers = []wireguard.PeerConfig{peer(r.keyB, insideB)}, []wireguard.PeerConfig{peer(r.keyA, insideA)}
	a.Peers[0].Endpoint = r.endB.Endpoint(51820)
	if change != nil {
		change(&a, &b)
	}
	r.a, r.b = r.up(a), r.up(b)
	return r
}

func (r *rig) up(c wireguard.Config) *wireguard.Device {
	r.t.Helper()
	d, err := wireguard.New(c)
	if err == nil {
		r.t.Cleanup(func() { d.Close() })
		err = d.Up()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// say sends a packet with size bytes of payload from a to b, and waits until all goroutines are idle.
func (r *rig) say(size int) {
	r.t.Helper()
	if !r.tunA.TrySend(pipe.UDPPacket(netip.AddrPortFrom(insideA, 7000), netip.AddrPortFrom(insideB, 7000), make([]byte, size))) {
		r.t.Fatal("the tunnel of a accepts no packet")
	}
	synctest.Wait()
}

// reply sends a packet from b to a.
func (r *rig) reply() { r.replyFrom(insideB) }

func (r *rig) replyFrom(src netip.Addr) {
	r.t.Helper()
	if !r.tunB.TrySend(pipe.UDPPacket(netip.AddrPortFrom(src, 7000), netip.AddrPortFrom(insideA, 7000), []byte("reply"))) {
		r.t.Fatal("the tunnel of b accepts no packet")
	}
	synctest.Wait()
}
