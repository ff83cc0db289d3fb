// Bind joins two devices through its own wireguard.Bind, with one UDP socket each, and prints every datagram that they send.
//
//	go run ./examples/bind
package main

import (
	"context"
	"log"
	"net"
	"net/netip"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

type bind struct{}

func (bind) Listen(port uint16) (wireguard.Socket, error) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
	return socket{c}, err
}

type socket struct{ *net.UDPConn } // its Close makes Receive fail with net.ErrClosed

func (s socket) Port() uint16                    { return s.LocalAddr().(*net.UDPAddr).AddrPort().Port() }
func (s socket) Receivers() []wireguard.Receiver { return []wireguard.Receiver{s} }

func (s socket) Send(trains []wireguard.Train) {
	for i := range trains {
		for datagram := range trains[i].Datagrams() {
			log.Printf("%v -> %v: %v of %d bytes", s.LocalAddr(), trains[i].Endpoint, pipe.TypeOf(datagram), len(datagram))
			_, trains[i].Err = s.WriteToUDPAddrPort(datagram, trains[i].Endpoint.Addr)
		}
	}
}

func (s socket) Receive() ([]wireguard.Train, error) {
	data := make([]byte, 1<<16)
	n, from, err := s.ReadFromUDPAddrPort(data)
	return []wireguard.Train{{Data: data[:n], Size: n, Endpoint: wireguard.EndpointOf(from)}}, err
}

func main() {
	key := wireguard.NewPrivateKey()
	server := start(wireguard.NewPrivateKey(), wireguard.PeerConfig{PublicKey: key.Public()}).Status()
	endpoint := wireguard.EndpointOf(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), server.ListenPort))
	must(0, start(key, wireguard.PeerConfig{PublicKey: server.PublicKey, Endpoint: endpoint}).Handshake(context.Background(), server.PublicKey))
}

func start(key wireguard.PrivateKey, peer wireguard.PeerConfig) *wireguard.Device {
	device := must(wireguard.New(wireguard.Config{PrivateKey: key, Tunnel: pipe.NewTunnel(0), Bind: bind{}, Peers: []wireguard.PeerConfig{peer}}))
	return must(device, device.Up())
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal("bind: ", err)
	}
	return v
}
