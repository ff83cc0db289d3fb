package wgo_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/transport/wgo"
)

// This example runs a device of this library with the packet side and the datagram side of wireguard-go: its netstack and its
// StdNetBind.
func Example() {
	keyA, keyB := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	start := func(key wireguard.PrivateKey, addr string, peer wireguard.PeerConfig) (*wireguard.Device, *netstack.Net) {
		dev, stack, err := netstack.CreateNetTUN([]netip.Addr{netip.MustParseAddr(addr)}, nil, 1420)
		if err != nil {
			log.Fatal(err)
		}
		d, err := wireguard.New(wireguard.Config{
			PrivateKey: key,
			Tunnel:     wgo.Tunnel(dev),
			Bind:       wgo.Bind(conn.NewStdNetBind()),
			Peers:      []wireguard.PeerConfig{peer},
		})
		if err != nil {
			log.Fatal(err)
		}
		if err := d.Up(); err != nil {
			log.Fatal(err)
		}
		return d, stack
	}
	a, stackA := start(keyA, "10.0.0.1", wireguard.PeerConfig{
		PublicKey:  keyB.Public(),
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")},
	})
	defer a.Close()
	b, stackB := start(keyB, "10.0.0.2", wireguard.PeerConfig{
		PublicKey:  keyA.Public(),
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")},
		Endpoint:   wireguard.EndpointOf(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), a.Status().ListenPort)),
	})
	defer b.Close()

	l, err := stackA.ListenTCPAddrPort(netip.MustParseAddrPort("10.0.0.1:80"))
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			io.WriteString(c, "hello through the tunnel")
			c.Close()
		}
	}()
	c, err := stackB.DialContextTCPAddrPort(context.Background(), netip.MustParseAddrPort("10.0.0.1:80"))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	got, err := io.ReadAll(c)
	fmt.Println(string(got), err)
	// Output: hello through the tunnel <nil>
}

// This example runs wireguard-go's device with a packet side and a datagram side of this library, which are those of package
// pipe.
func ExampleTUNDevice() {
	network := pipe.NewNetwork(pipe.Config{})
	dev, err := wgo.TUNDevice(pipe.NewTunnel(1280))
	if err != nil {
		log.Fatal(err)
	}
	bind := wgo.ConnBind(network.NewEnd(netip.MustParseAddr("192.0.2.1")))
	d := device.NewDevice(dev, bind, device.NewLogger(device.LogLevelError, ""))
	if err := d.Up(); err != nil {
		log.Fatal(err)
	}
	mtu, err := dev.MTU()
	fmt.Println(mtu, err)
	d.Close()
	// Output: 1280 <nil>
}
