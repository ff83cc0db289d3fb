// Tunnel implements its own wireguard.Tunnel, which sends packets back to their sender.
//
//	go run ./examples/tunnel
package main

import (
	"context"
	"log"
	"net/netip"
	"slices"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A mirror is a wireguard.Attacher: it sends packets through the device that calls Attach.
type mirror struct{ device *wireguard.Device }

func (m *mirror) Attach(d *wireguard.Device) { m.device = d }
func (m *mirror) MTU() int                   { return 1420 }
func (m *mirror) Close() error               { return nil }

// WritePackets receives packets, here UDP over IPv4. It must not keep them after it returns.
func (m *mirror) WritePackets(packets [][]byte) (int, error) {
	batch := m.device.NewBatch()
	for _, p := range packets {
		batch.Append(slices.Concat(p[:12], p[16:20], p[12:16], p[22:24], p[20:22], p[24:])) // swap addresses and ports
	}
	return len(packets), m.device.Send(batch)
}

func main() {
	key, mirrorKey := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	wire, tunnel := pipe.NewNetwork(pipe.Config{}), pipe.NewTunnel(0)
	end, mirrorEnd := wire.NewEnd(), wire.NewEnd()
	start(&mirror{}, mirrorEnd, mirrorKey, wireguard.PeerConfig{PublicKey: key.Public()})
	start(tunnel, end, key, wireguard.PeerConfig{PublicKey: mirrorKey.Public(), Endpoint: mirrorEnd.Endpoint(51820)})

	hello := pipe.UDPPacket(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), []byte("hello"))
	begin := time.Now()
	must(0, tunnel.Send(context.Background(), hello))
	answer := must(tunnel.Receive(context.Background()))
	log.Printf("%s came back after %v", answer[28:], time.Since(begin))
}

func start(t wireguard.Tunnel, b wireguard.Bind, key wireguard.PrivateKey, peer wireguard.PeerConfig) {
	peer.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}
	config := wireguard.Config{PrivateKey: key, ListenPort: 51820, Tunnel: t, Bind: b, Peers: []wireguard.PeerConfig{peer}}
	must(0, must(wireguard.New(config)).Up())
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal("tunnel: ", err)
	}
	return v
}
