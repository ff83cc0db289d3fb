// Gateway lets its peers reach other hosts over TCP, UDP and ping, without root and without a kernel interface.
//
//	go run ./examples/gateway gateway.conf
//
// Peers cannot reach the host's own addresses, unless they are in the prefix that -open names.
package main

import (
	"flag"
	"log"
	"net/netip"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/gateway"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

func main() {
	var open netip.Prefix
	flag.TextVar(&open, "open", open, "a `prefix` with addresses of the host that peers may reach")
	flag.Parse()
	file := must(conf.ReadFile(flag.Arg(0)))
	public := gateway.Public(file.Interface.Addresses...)
	policy := func(r gateway.Request) gateway.Verdict {
		v := public(r)
		v.Allow = v.Allow || open.Contains(r.Destination.Addr())
		log.Printf("%v: %s %v to %v, allowed: %t", r.Peer, r.Network, r.Source, r.Destination, v.Allow)
		return v
	}
	exit := must(gateway.New(gateway.Config{Policy: policy}))
	stack := must(netstack.New(netstack.Config{Addresses: file.Addrs(), MTU: file.Interface.MTU, Forward: exit.Forward}))
	config := must(file.Config())
	config.Tunnel, config.Bind = stack, &udp.Bind{}
	device := must(wireguard.New(config))
	must(device, device.Up())
	log.Print("UDP port ", device.Status().ListenPort)
	<-device.Done() // until a signal ends the program
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal("gateway: ", err)
	}
	return v
}
