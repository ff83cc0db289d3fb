// Gateway lets its peers reach the host's network over TCP and UDP, without root and without a kernel interface.
//
//	go run ./examples/gateway gateway.conf
package main

import (
	"flag"
	"io"
	"log"
	"net"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

func main() {
	flag.Parse()
	file := must(conf.ReadFile(flag.Arg(0)))
	stack := must(netstack.New(netstack.Config{Addresses: file.Addrs(), MTU: file.Interface.MTU, Forward: forward}))
	config := must(file.Config())
	config.Tunnel, config.Bind = stack, &udp.Bind{}
	device := must(wireguard.New(config))
	must(device, device.Up())
	log.Print("UDP port ", device.Status().ListenPort)
	<-device.Done() // until a signal ends the program
}

// forward joins a peer's flow with a connection of the host to the same destination. A ping is refused.
func forward(f *netstack.Flow) {
	remote, err := new(net.Dialer).DialContext(f.Context(), f.Network(), f.Destination().String())
	if err != nil {
		f.Refuse(netstack.RefusalOf(err))
		return
	}
	defer remote.Close()
	if local, err := f.Accept(); err == nil {
		defer local.Close()
		log.Printf("%v: %v to %v", f.Peer(), f.Source(), f.Destination())
		ended := make(chan bool)
		go func() { join(remote, local); close(ended) }()
		join(local, remote) // each direction of TCP ends independently
		<-ended
	}
}

func join(to, from net.Conn) {
	io.Copy(to, from)
	if c, ok := to.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
		to.Close()
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal("gateway: ", err)
	}
	return v
}
