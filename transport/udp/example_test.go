package udp_test

import (
	"fmt"
	"log"
	"net/netip"
	"syscall"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// This Bind listens on one address only. The Bind calls Control for each socket before it binds the socket. Use Control to call
// VpnService.protect on Android, or to set a socket option that this package does not set.
func ExampleBind() {
	bind := &udp.Bind{
		Address:   netip.MustParseAddr("127.0.0.1"),
		Receivers: 1, // the loop below reads one receiver only
		Control: func(network, address string, c syscall.RawConn) error {
			fmt.Println("a socket for", network)
			return nil
		},
	}
	s, err := bind.Listen(0) // a device calls Listen of the Bind in its Config itself
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	// A train consists of several datagrams to one endpoint. Here each datagram has 4 bytes, except the last one, which has 3.
	to := wireguard.EndpointOf(netip.AddrPortFrom(bind.Address, s.Port()))
	s.Send([]wireguard.Train{{Data: []byte("one two six"), Size: 4, Endpoint: to}})

	var got []byte
	for len(got) < 11 { // Receive may return one train of three datagrams, or one datagram per call
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
