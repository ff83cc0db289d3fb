package udp_test

import (
	"fmt"
	"log"
	"net/netip"
	"syscall"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// This Bind listens on one address only, and calls Control for each socket before it binds the socket. Control is the
// place for VpnService.protect on Android, or for a socket option that this package does not know.
func ExampleBind() {
	bind := &udp.Bind{
		Address:   netip.MustParseAddr("127.0.0.1"),
		Receivers: 1, // otherwise there may be more receivers than the one that is read below
		Control: func(network, address string, c syscall.RawConn) error {
			fmt.Println("a socket for", network)
			return nil
		},
	}
	s, err := bind.Listen(0) // a device calls Listen itself, on the Bind in its Config
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	// A train is several datagrams to one endpoint; the system cuts it.
	to := wireguard.EndpointOf(netip.AddrPortFrom(bind.Address, s.Port()))
	s.Send([]wireguard.Train{{Data: []byte("one two six"), Size: 4, Endpoint: to}})

	var got []byte
	for len(got) < 11 { // one turn on Linux, three elsewhere
		trains, err := s.Receivers()[0].Receive()
		if err != nil {
			log.Fatal(err)
		}
		for _, t := range trains {
			got = append(got, t.Data...)
		}
	}
	fmt.Printf("%s: %d datagrams sent\n", got, s.(*udp.Socket).Stats().SentDatagrams)
	// Output:
	// a socket for udp4
	// one two six: 3 datagrams sent
}
