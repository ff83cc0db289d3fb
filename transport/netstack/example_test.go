package netstack_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/netip"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// This example combines two programs: a web server at one end of a tunnel, and a client at the other. Real programs would use
// transport/udp as the wire between them, with the other end's real address.
func Example() {
	wire := pipe.NewNetwork(pipe.Config{})
	serverEnd, clientEnd := wire.NewEnd(), wire.NewEnd()
	serverKey, clientKey := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()

	server, err := netstack.New(netstack.Config{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
	if err != nil {
		log.Fatal(err)
	}
	serverDevice := up(wireguard.Config{
		PrivateKey: serverKey, Tunnel: server, Bind: serverEnd, ListenPort: 51820,
		Peers: []wireguard.PeerConfig{{
			PublicKey:  clientKey.Public(),
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")},
		}},
	})
	defer serverDevice.Close() // also closes the Net

	client, err := netstack.New(netstack.Config{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
	if err != nil {
		log.Fatal(err)
	}
	clientDevice := up(wireguard.Config{
		PrivateKey: clientKey, Tunnel: client, Bind: clientEnd,
		Peers: []wireguard.PeerConfig{{
			PublicKey:  serverKey.Public(),
			Endpoint:   serverEnd.Endpoint(51820),
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
		}},
	})
	defer clientDevice.Close()

	l, err := server.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %s", r.RemoteAddr[:8])
	}))

	web := http.Client{Transport: &http.Transport{DialContext: client.DialContext}}
	defer web.CloseIdleConnections()
	r, err := web.Get("http://10.0.0.1/")
	if err != nil {
		log.Fatal(err)
	}
	defer r.Body.Close()
	page, err := io.ReadAll(r.Body)
	fmt.Println(string(page), err)

	if _, err := client.Ping(context.Background(), netip.MustParseAddr("10.0.0.1")); err == nil {
		fmt.Println("and it answers a ping")
	}
	// Output:
	// hello, 10.0.0.2 <nil>
	// and it answers a ping
}

func up(c wireguard.Config) *wireguard.Device {
	d, err := wireguard.New(c)
	if err != nil {
		log.Fatal(err)
	}
	if err := d.Up(); err != nil {
		log.Fatal(err)
	}
	return d
}
