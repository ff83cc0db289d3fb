package pipe_test

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// This example connects two devices through a network. A packet that is sent into the tunnel of one device is received from the
// tunnel of the other.
func Example() {
	n := pipe.NewNetwork(pipe.Config{})
	a, b := n.NewEnd(), n.NewEnd()
	keyA, keyB := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	device := func(end *pipe.End, key wireguard.PrivateKey, peer wireguard.PeerConfig) (*wireguard.Device, *pipe.Tunnel) {
		tunnel := pipe.NewTunnel(1420)
		d, err := wireguard.New(wireguard.Config{
			PrivateKey: key,
			ListenPort: 51820,
			Bind:       end,
			Tunnel:     tunnel,
			Peers:      []wireguard.PeerConfig{peer},
		})
		if err != nil {
			panic(err)
		}
		if err := d.Up(); err != nil {
			panic(err)
		}
		return d, tunnel
	}
	deviceA, tunnelA := device(a, keyA, wireguard.PeerConfig{
		PublicKey:  keyB.Public(),
		Endpoint:   b.Endpoint(51820),
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")},
	})
	defer deviceA.Close()
	deviceB, tunnelB := device(b, keyB, wireguard.PeerConfig{
		PublicKey:  keyA.Public(),
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")},
	})
	defer deviceB.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	packet := pipe.UDPPacket(netip.MustParseAddrPort("10.0.0.1:1234"), netip.MustParseAddrPort("10.0.0.2:80"), []byte("hello"))
	if err := tunnelA.Send(ctx, packet); err != nil {
		panic(err)
	}
	got, err := tunnelB.Receive(ctx)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", got[28:])
	fmt.Println("initiations:", a.Sent().Initiations, "responses:", b.Sent().Responses, "data:", a.Sent().Data)
	// Output:
	// hello
	// initiations: 1 responses: 1 data: 1
}

// This example sends a train from one end to another, without a device.
func ExampleEnd() {
	n := pipe.NewNetwork(pipe.Config{})
	a, _ := n.NewEnd(netip.MustParseAddr("192.0.2.1")).Listen(1000)
	b, _ := n.NewEnd(netip.MustParseAddr("192.0.2.2")).Listen(2000)
	defer a.Close()
	defer b.Close()

	a.Send([]wireguard.Train{{
		Data:     []byte("onetwoend"),
		Size:     3,
		Endpoint: wireguard.EndpointOf(netip.MustParseAddrPort("192.0.2.2:2000")),
	}})
	trains, err := b.Receivers()[0].Receive()
	if err != nil {
		panic(err)
	}
	for _, t := range trains {
		fmt.Println(t.Len(), "datagrams from", t.Endpoint, "to", t.Endpoint.Source)
	}
	// Output:
	// 3 datagrams from 192.0.2.1:1000 to 192.0.2.2
}

// In this example, a filter drops the second datagram, and a tap prints the fate of each datagram.
func ExampleNetwork_Filter() {
	n := pipe.NewNetwork(pipe.Config{})
	a, _ := n.NewEnd(netip.MustParseAddr("192.0.2.1")).Listen(1000)
	b, _ := n.NewEnd(netip.MustParseAddr("192.0.2.2")).Listen(1000)
	defer a.Close()
	defer b.Close()

	sent := 0
	n.Filter(func(p *pipe.Packet) pipe.Verdict {
		if sent++; sent == 2 {
			return pipe.Drop
		}
		return pipe.Pass
	})
	n.Tap(func(p pipe.Packet) { fmt.Printf("%v to %v: %s: %v\n", p.From, p.To, p.Data, p.Fate) })
	a.Send([]wireguard.Train{{
		Data:     []byte("onetwoend"),
		Size:     3,
		Endpoint: wireguard.EndpointOf(netip.MustParseAddrPort("192.0.2.2:1000")),
	}})
	// Output:
	// 192.0.2.1:1000 to 192.0.2.2:1000: one: delivered
	// 192.0.2.1:1000 to 192.0.2.2:1000: two: filtered
	// 192.0.2.1:1000 to 192.0.2.2:1000: end: delivered
}

// In this example, a fifth of the datagrams is lost, and the others arrive after 20 to 30 milliseconds. The same seed gives the
// same result.
func ExampleNetwork_SetConditions() {
	n := pipe.NewNetwork(pipe.Config{Seed: 2})
	a, _ := n.NewEnd().Listen(1000)
	end := n.NewEnd()
	b, _ := end.Listen(1000)
	defer a.Close()
	defer b.Close()

	n.SetConditions(pipe.Conditions{Loss: 0.2, Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond})
	for range 100 {
		a.Send([]wireguard.Train{{Data: []byte("x"), Size: 1, Endpoint: end.Endpoint(1000)}})
	}
	s := n.Stats()
	fmt.Println(s.Sent.Total(), "sent,", s.Fates[pipe.FateLost], "lost,", s.Fates.Total()-s.Fates[pipe.FateLost]+uint64(s.UnderWay), "not")
	// Output:
	// 100 sent, 20 lost, 80 not
}

// In this example, the datagrams of an end behind a NAT come from an address of the NAT.
func ExampleNAT() {
	n := pipe.NewNetwork(pipe.Config{})
	nat := n.NewNAT(pipe.NATConfig{Addrs: []netip.Addr{netip.MustParseAddr("203.0.113.1")}})
	a, _ := nat.NewEnd(netip.MustParseAddr("192.168.1.2")).Listen(1000)
	server := n.NewEnd(netip.MustParseAddr("192.0.2.1"))
	b, _ := server.Listen(1000)
	defer a.Close()
	defer b.Close()

	for range 2 {
		a.Send([]wireguard.Train{{Data: []byte("x"), Size: 1, Endpoint: server.Endpoint(1000)}})
		trains, err := b.Receivers()[0].Receive()
		if err != nil {
			panic(err)
		}
		fmt.Println(trains[0].Endpoint)
		nat.Rebind() // as if the NAT had restarted
	}
	// Output:
	// 203.0.113.1:20000
	// 203.0.113.1:20001
}
