// Package devices makes devices for tests. It uses only the API of the root package.
package devices

import (
	"net/netip"
	"testing"

	"github.com/seed-86b749af/wireguard"
)

// Up makes a device and takes it up. The device is closed when the test ends.
func Up(t testing.TB, c wireguard.Config) *wireguard.Device {
	t.Helper()
	d, err := wireguard.New(c)
	if err == nil {
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		err = d.Up()
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A Side is one device of a pair.
type Side struct {
	Tunnel wireguard.Tunnel
	Bind   wireguard.Bind
	At     func(port uint16) wireguard.Endpoint // returns the endpoint of a socket of Bind for the other device; nil means Loopback
	Inside []netip.Prefix                       // addresses that packets from this side may have
}

// Loopback returns the endpoint of a UDP socket on the address 127.0.0.1.
func Loopback(port uint16) wireguard.Endpoint {
	return wireguard.EndpointOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port))
}

// Pair makes two devices that are up. The first device has the endpoint of the second one. The second device learns the endpoint
// of the first one from the first packet.
func Pair(t testing.TB, a, b Side) (da, db *wireguard.Device) {
	t.Helper()
	keyA, keyB := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	db = Up(t, b.config(keyB, wireguard.PeerConfig{PublicKey: keyA.Public(), AllowedIPs: a.Inside}))
	at := b.At
	if at == nil {
		at = Loopback
	}
	da = Up(t, a.config(keyA, wireguard.PeerConfig{PublicKey: keyB.Public(), AllowedIPs: b.Inside, Endpoint: at(db.Status().ListenPort)}))
	return da, db
}

func (s Side) config(key wireguard.PrivateKey, peer wireguard.PeerConfig) wireguard.Config {
	return wireguard.Config{PrivateKey: key, Tunnel: s.Tunnel, Bind: s.Bind, Peers: []wireguard.PeerConfig{peer}}
}
