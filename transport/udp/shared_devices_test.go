package udp_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// A town is the set-up of the tests below: many devices on one Shared, and one client device with a separate socket. The client
// is a peer of each of these devices:
//
//	tunnel 0 ═══ device 0 ──┐
//	tunnel 1 ═══ device 1 ──┼── Shared ─── 127.0.0.1 ─── client ═══ tunnel
//	...                   ──┘                                       10.255.0.1
type town struct {
	shared  *udp.Shared
	tenants []*udp.Tenant
	keys    []wireguard.PrivateKey
	devices []*wireguard.Device
	tunnels []*pipe.Tunnel

	client *wireguard.Device
	tunnel *pipe.Tunnel
}

var clientAddr = netip.MustParseAddrPort("10.255.0.1:1")

// inside returns the address and port of tenant i inside the tunnel.
func inside(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 2)
}

// newTown makes n devices and a client. If tenantsBegin returns true for device i, the device knows the client's endpoint and
// must begin the handshake. Otherwise the client knows the device's endpoint and must begin.
func newTown(t *testing.T, bind *udp.Bind, n int, tenantsBegin func(i int) bool) *town {
	t.Helper()
	v := &town{tunnel: pipe.NewTunnel(1420)}
	var err error
	if v.shared, err = bind.Share(0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.shared.Close() })
	key := wireguard.NewPrivateKey()
	v.client = devices.Up(t, wireguard.Config{PrivateKey: key, Tunnel: v.tunnel, Bind: &udp.Bind{Address: loopback}})
	var peers []wireguard.PeerChange
	for i := range n {
		own := wireguard.NewPrivateKey()
		tenant, err := v.shared.Join(own.Public())
		if err != nil {
			t.Fatal(err)
		}
		peer := wireguard.PeerConfig{PublicKey: key.Public(), AllowedIPs: []netip.Prefix{prefix(clientAddr)}}
		its := wireguard.PeerConfig{PublicKey: own.Public(), AllowedIPs: []netip.Prefix{prefix(inside(i))}}
		if tenantsBegin(i) {
			peer.Endpoint = devices.Loopback(v.client.Status().ListenPort)
		} else {
			its.Endpoint = devices.Loopback(v.shared.Port())
		}
		tunnel := pipe.NewTunnel(1420)
		v.devices = append(v.devices, devices.Up(t, wireguard.Config{
			PrivateKey: own, Tunnel: tunnel, Bind: tenant, IndexPrefix: tenant.IndexPrefix(), Peers: []wireguard.PeerConfig{peer},
		}))
		v.tenants, v.keys, v.tunnels = append(v.tenants, tenant), append(v.keys, own), append(v.tunnels, tunnel)
		peers = append(peers, its.Change())
	}
	if err := v.client.Configure(wireguard.Change{Peers: peers}); err != nil {
		t.Fatal(err)
	}
	return v
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// exchange sends a packet that contains number from the client to tenant i, or in the opposite direction if back is set. It
// waits until the packet arrives.
func (v *town) exchange(ctx context.Context, t *testing.T, i, number int, back bool) {
	t.Helper()
	from, to, src, dst := v.tunnel, v.tunnels[i], clientAddr, inside(i)
	if back {
		from, to, src, dst = to, from, dst, src
	}
	sent := pipe.UDPPacket(src, dst, binary.BigEndian.AppendUint64(nil, uint64(number)))
	if err := from.Send(ctx, sent); err != nil {
		t.Fatalf("tenant %d: %v", i, err)
	}
	if got, err := to.Receive(ctx); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("tenant %d (back: %v): packet %d arrived as %x, error %v; want it unchanged", i, back, number, got, err)
	}
}

// TestSharedThousandDevices checks that a thousand devices on one port can each have a session with the client. In half of the
// sessions the client begins the handshake, in the other half the tenant's device begins it. Packets arrive in both directions,
// also after Shared.Wake and Device.Wake.
func TestSharedThousandDevices(t *testing.T) {
	n := 1000
	if testkit.Race {
		n = 100 // each handshake is slow under the race detector
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	v := newTown(t, &udp.Bind{Address: loopback, Receivers: 2}, n, func(i int) bool { return i%2 == 0 })
	var handshakes sync.WaitGroup
	room := make(chan bool, 64) // limits concurrent handshakes; the Shared queues at most 256 initiations from one address
	for i := range n {
		room <- true
		handshakes.Go(func() {
			defer func() { <-room }()
			device, peer := v.client, v.keys[i].Public()
			if i%2 == 0 {
				device, peer = v.devices[i], v.client.Status().PublicKey
			}
			if err := device.Handshake(ctx, peer); err != nil {
				t.Errorf("tenant %d: %v", i, err)
			}
		})
	}
	handshakes.Wait()
	if t.Failed() {
		return
	}
	for i := range n {
		v.exchange(ctx, t, i, i, false)
		v.exchange(ctx, t, i, i, true)
	}
	if err := v.shared.Wake(); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < n; i += 10 {
		if err := v.devices[i].Wake(); err != nil {
			t.Fatal(err)
		}
		v.exchange(ctx, t, i, i, false)
		v.exchange(ctx, t, i, i, true)
	}
	if s := v.shared.Stats(); s.Tenants != n || s.Unknown != 0 || s.Overflow != 0 {
		t.Errorf("%+v, want %d tenants and no datagram counted as Unknown or Overflow", s, n)
	}
}

// forgery makes an initiation whose mac1 fits no tenant's key. n makes it unique.
func forgery(n int) []byte {
	b := make([]byte, 148)
	b[0] = 1
	binary.LittleEndian.PutUint64(b[4:], uint64(n))
	return b
}

// flood sends forgeries from n addresses to the port until the test ends. It sends at most 40 per millisecond in all, which one
// core can receive easily.
func flood(t *testing.T, n int, port uint16) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("needs a loopback interface with all of 127.0.0.0/8")
	}
	var senders []net.Conn
	for i := range n {
		from := &net.UDPAddr{IP: net.IPv4(127, 0, 1, byte(i))}
		c, err := net.DialUDP("udp4", from, net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, port)))
		if err != nil {
			t.Fatal(err)
		}
		senders = append(senders, c)
	}
	var done atomic.Bool
	var sender sync.WaitGroup
	sender.Go(func() {
		for n := 0; !done.Load(); n++ {
			senders[n%len(senders)].Write(forgery(n))
			if n%40 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
	t.Cleanup(func() {
		done.Store(true)
		sender.Wait()
		for _, c := range senders {
			c.Close()
		}
	})
}

// TestSharedFloodLeavesKnownPeers checks that clients at a known address can make sessions while forged initiations from other
// addresses fill the queue.
func TestSharedFloodLeavesKnownPeers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	const n = 200
	v := newTown(t, &udp.Bind{Address: loopback}, n, func(int) bool { return false })
	peer := v.keys[n-1].Public() // the key that is tried last
	if err := v.client.Handshake(ctx, peer); err != nil {
		t.Fatal(err)
	}
	flood(t, 20, v.shared.Port())
	waitFor(t, "the full queue has refused 1000 initiations", func() bool { return v.shared.Stats().Refused > 1000 })
	before := v.shared.Stats()
	for i := range 5 {
		// A device sends an initiation at most once in 5 s, so each attempt uses another client at the known address.
		key := wireguard.NewPrivateKey()
		if err := v.devices[n-1].SetPeer(wireguard.PeerConfig{PublicKey: key.Public()}); err != nil {
			t.Fatal(err)
		}
		client := devices.Up(t, wireguard.Config{PrivateKey: key, Tunnel: pipe.NewTunnel(1420), Bind: &udp.Bind{Address: loopback},
			Peers: []wireguard.PeerConfig{{PublicKey: peer, Endpoint: devices.Loopback(v.shared.Port())}}})
		if err := client.Handshake(ctx, peer); err != nil {
			t.Fatalf("handshake of client %d at a known address during the flood: %v", i, err)
		}
	}
	v.exchange(ctx, t, n-1, 1, false)
	v.exchange(ctx, t, n-1, 2, true)
	waitFor(t, "the full queue refuses more initiations", func() bool { return v.shared.Stats().Refused > before.Refused })
	after := v.shared.Stats()
	// Tried may exceed Unclaimed by 2. The initiation of the first handshake came from an unknown address and fitted a key, so it
	// was tried and not unclaimed. One forgery may have been tried but not counted as unclaimed yet.
	if after.Tried-after.Unclaimed > 2 {
		t.Errorf("%+v: the Shared tried more than the forgeries and the first initiation with all keys", after)
	}
}

// TestSharedFloodOfOneAddress checks that forged initiations from one address cannot fill the queue: they can use at most a
// sixteenth of the queue. Initiations from another unknown address still reach their tenants.
func TestSharedFloodOfOneAddress(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	const n = 200
	v := newTown(t, &udp.Bind{Address: loopback}, n, func(int) bool { return false })
	flood(t, 1, v.shared.Port())
	waitFor(t, "1000 initiations beyond the share of the address are refused", func() bool { return v.shared.Stats().Refused > 1000 })
	for i := range 5 {
		if err := v.client.Handshake(ctx, v.keys[i].Public()); err != nil {
			t.Fatalf("handshake from an unknown address while another address floods the port: %v", err)
		}
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// TestSharedChangeOfKey checks that initiations for the new key reach a device whose private key has changed, and that
// initiations for the old key do not.
func TestSharedChangeOfKey(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	v := newTown(t, &udp.Bind{Address: loopback}, 2, func(int) bool { return false })
	next := wireguard.NewPrivateKey()
	if err := v.tenants[0].SetKey(next.Public()); err != nil {
		t.Fatal(err)
	}
	if err := v.devices[0].Configure(wireguard.Change{PrivateKey: &next}); err != nil {
		t.Fatal(err)
	}
	c := wireguard.PeerConfig{PublicKey: next.Public(), AllowedIPs: []netip.Prefix{prefix(inside(0))}, Endpoint: devices.Loopback(v.shared.Port())}
	if err := v.client.SetPeer(c); err != nil {
		t.Fatal(err)
	}
	if err := v.client.Handshake(ctx, next.Public()); err != nil {
		t.Fatal(err)
	}
	v.exchange(ctx, t, 0, 1, false)
	v.exchange(ctx, t, 1, 1, false)
	if err := v.client.Renew(brief(t), v.keys[0].Public()); err == nil {
		t.Error("the device still answers initiations for its old key")
	}
}

// brief returns a context that ends after 50 ms.
func brief(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// TestSharedNeighbours checks that two devices on the same Shared can be peers.
func TestSharedNeighbours(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	v := newTown(t, &udp.Bind{Address: loopback}, 2, func(int) bool { return false })
	for i := range 2 {
		c := wireguard.PeerConfig{PublicKey: v.keys[1-i].Public(), AllowedIPs: []netip.Prefix{prefix(inside(1 - i))}, Endpoint: devices.Loopback(v.shared.Port())}
		if err := v.devices[i].SetPeer(c); err != nil {
			t.Fatal(err)
		}
	}
	sent := pipe.UDPPacket(inside(0), inside(1), []byte("neighbour"))
	if err := v.tunnels[0].Send(ctx, sent); err != nil {
		t.Fatal(err)
	}
	if got, err := v.tunnels[1].Receive(ctx); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("tenant 1 received %x, error %v; want the packet from tenant 0", got, err)
	}
}
