package conf_test

import (
	"fmt"
	"os"
	"slices"

	"github.com/seed-86b749af/wireguard/conf"
)

// A program changes a value, and the rest of the file stays as it was written.
func Example() {
	f, err := conf.Parse([]byte(`# the office
[Interface]
ListenPort = 51820   # open in the firewall
Address = 10.0.0.2/24
PostUp = logger up; logger "%i"

# the gateway
[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
AllowedIPs = 10.0.0.0/24
Endpoint = 192.0.2.1:51820
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	f.Interface.ListenPort = 4500
	f.Peers[0].Endpoint = conf.Endpoint{Host: "vpn.example.com", Port: 51820}
	text, err := f.Text()
	fmt.Println(err)
	os.Stdout.Write(text)
	// Output:
	// <nil>
	// # the office
	// [Interface]
	// ListenPort = 4500   # open in the firewall
	// Address = 10.0.0.2/24
	// PostUp = logger up; logger "%i"
	//
	// # the gateway
	// [Peer]
	// PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
	// AllowedIPs = 10.0.0.0/24
	// Endpoint = vpn.example.com:51820
}

// Parse reports all faults of a file at once, with their line numbers.
func ExampleParse_errors() {
	_, err := conf.Parse([]byte("[Interface]\nPrivateKey = oops\nMTU = 9\n[Peer]\nEndpoint = 192.0.2.1\n"))
	fmt.Println(err)
	for _, e := range slices.Backward(conf.Errors(err)) {
		fmt.Print(e.Line, " ", e.Key, "; ")
	}
	// Output:
	// line 2: PrivateKey: want 32 bytes in base64: 44 characters that end in =, as wg genkey prints them
	// line 3: MTU: "9": want bytes from 68 to 65535; 1420 is usual, and IPv6 needs at least 1280
	// line 5: Endpoint: "192.0.2.1": the port is missing; want host:port, such as 192.0.2.1:51820
	// 5 Endpoint; 3 MTU; 2 PrivateKey;
}
