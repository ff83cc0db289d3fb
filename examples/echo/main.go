// Echo joins two devices with a wire in memory. It sends packets through the tunnel and back.
//
//	go run ./examples/echo -delay 20ms
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/netip"
	"os"
	"os/signal"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

func main() {
	count := flag.Int("count", 5, "the `number` of packets")
	delay := flag.Duration("delay", 10*time.Millisecond, "the `time` in each direction")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	wire := pipe.NewNetwork(pipe.Config{})
	wire.SetConditions(pipe.Conditions{Delay: *delay})
	keys := [2]wireguard.PrivateKey{wireguard.NewPrivateKey(), wireguard.NewPrivateKey()}
	ends := [2]*pipe.End{wire.NewEnd(), wire.NewEnd()}
	tunnels := [2]*pipe.Tunnel{pipe.NewTunnel(0), pipe.NewTunnel(0)}
	inner := [2]netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:7"), netip.MustParseAddrPort("10.0.0.2:7")}
	for i, j := range [2]int{1, 0} { // device i has the other device, j, as its peer
		peer := wireguard.PeerConfig{
			PublicKey: keys[j].Public(), Endpoint: ends[j].Endpoint(51820), AllowedIPs: []netip.Prefix{netip.PrefixFrom(inner[j].Addr(), 32)},
		}
		device, err := wireguard.New(wireguard.Config{
			PrivateKey: keys[i], ListenPort: 51820, Tunnel: tunnels[i], Bind: ends[i], Peers: []wireguard.PeerConfig{peer},
		})
		check(err)
		defer device.Close()
		check(device.Up())
	}
	for i := range *count { // the first packet waits for the handshake
		start := time.Now()
		check(tunnels[0].Send(ctx, pipe.UDPPacket(inner[0], inner[1], fmt.Appendf(nil, "hello %d", i))))
		packet, err := tunnels[1].Receive(ctx)
		check(err)
		check(tunnels[1].Send(ctx, pipe.UDPPacket(inner[1], inner[0], packet[28:]))) // without the headers of IPv4 and UDP
		packet, err = tunnels[0].Receive(ctx)
		check(err)
		fmt.Printf("%s after %v\n", packet[28:], time.Since(start).Round(time.Microsecond))
	}
	fmt.Printf("on the wire: %+v\n", wire.Sent())
}

func check(err error) {
	if err != nil {
		log.Fatal("echo: ", err)
	}
}
