// Quickstart joins two devices in one program over UDP on loopback, with one network stack each, and downloads a file
// through the tunnel.
//
//	go run ./examples/quickstart
package main

import (
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

func main() {
	size := flag.Int64("size", 256<<20, "the file's `bytes`")
	flag.Parse()
	key, serverKey := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	server, serverStack := start(serverKey, "10.0.0.1", wireguard.PeerConfig{PublicKey: key.Public()})
	endpoint := wireguard.EndpointOf(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), server.Status().ListenPort))
	_, stack := start(key, "10.0.0.2", wireguard.PeerConfig{PublicKey: serverKey.Public(), Endpoint: endpoint})

	listener := must(serverStack.Listen("tcp", ":80"))
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.CopyN(w, rand.NewChaCha8([32]byte{}), *size)
	}))

	begin := time.Now()
	client := http.Client{Transport: &http.Transport{DialContext: stack.DialContext}}
	response := must(client.Get("http://10.0.0.1/"))
	sent, received := crc32.NewIEEE(), crc32.NewIEEE()
	n := must(io.CopyBuffer(received, response.Body, make([]byte, 256<<10)))
	took := time.Since(begin)
	io.CopyN(sent, rand.NewChaCha8([32]byte{}), *size) // generates the same bytes again
	fmt.Printf("%d bytes in %v, %.2f Gbit/s; CRC-32 %x, sent %x\n", n, took, float64(8*n)/float64(took), received.Sum32(), sent.Sum32())
	peer, _ := server.Peer(key.Public())
	fmt.Printf("handshake at %v; on the wire %d bytes out, %d in\n", peer.LastHandshake.Format(time.TimeOnly), peer.Sent.Bytes, peer.Received.Bytes)
}

func start(key wireguard.PrivateKey, address string, peer wireguard.PeerConfig) (*wireguard.Device, *netstack.Net) {
	peer.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}
	stack := must(netstack.New(netstack.Config{Addresses: []netip.Addr{netip.MustParseAddr(address)}}))
	device := must(wireguard.New(wireguard.Config{PrivateKey: key, Tunnel: stack, Bind: &udp.Bind{}, Peers: []wireguard.PeerConfig{peer}}))
	return must(device, device.Up()), stack
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal("quickstart: ", err)
	}
	return v
}
