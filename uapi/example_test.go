package uapi_test

import (
	"log"
	"os"
	"strings"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/transport/udp"
	"github.com/seed-86b749af/wireguard/uapi"
)

// Set accepts the text that IpcSet of wireguard-go accepts, and Get writes the text that IpcGet returns.
func Example() {
	d, err := wireguard.New(wireguard.Config{Tunnel: pipe.NewTunnel(1420), Bind: &udp.Bind{}})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()

	request := `public_key=65c7a46e0a8a0a1e6f4b4a1ef4e0b7e5c1b9a9f3f6e1f5c8d2f6b1a3c4d5e60f
endpoint=192.0.2.1:51820
allowed_ip=10.0.0.0/24
`
	if err := uapi.Set(strings.NewReader(request), d); err != nil {
		log.Fatal(err)
	}
	if err := uapi.Get(os.Stdout, d); err != nil {
		log.Fatal(err)
	}
	// Output:
	// public_key=65c7a46e0a8a0a1e6f4b4a1ef4e0b7e5c1b9a9f3f6e1f5c8d2f6b1a3c4d5e60f
	// preshared_key=0000000000000000000000000000000000000000000000000000000000000000
	// protocol_version=1
	// endpoint=192.0.2.1:51820
	// last_handshake_time_sec=0
	// last_handshake_time_nsec=0
	// tx_bytes=0
	// rx_bytes=0
	// persistent_keepalive_interval=0
	// allowed_ip=10.0.0.0/24
}

// A daemon lets wg(8) configure its device. It exits when the socket is removed, because wg-quick down removes the socket to end
// the daemon.
func ExampleServer() {
	var device *wireguard.Device // made by wireguard.New
	l, err := uapi.Listen("wg0")
	if err != nil {
		log.Fatal(err)
	}
	s := &uapi.Server{Device: device}
	go func() {
		<-device.Done()
		s.Close()
	}()
	if err := s.Serve(l); err != nil {
		log.Print(err) // the socket was removed
	}
	s.Close()
	device.Close()
}
