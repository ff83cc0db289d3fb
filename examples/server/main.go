// Server answers HTTP requests inside a WireGuard tunnel, and greets each client by its public key.
//
//	go run ./examples/server -config gateway.conf
//
// The file is a wg-quick(8) file. Its peers are the clients.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"net/netip"
	"os"
	"os/signal"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

func main() {
	name := flag.String("config", "wg0.conf", "the tunnel's `file`")
	listen := flag.String("listen", ":80", "serve at this `address` inside the tunnel")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	file := must(conf.ReadFile(*name))
	check(file.Resolve(ctx, conf.Resolution{}))
	stack := must(netstack.New(netstack.Config{Addresses: file.Addrs(), MTU: file.Interface.MTU}))
	config := must(file.Config())
	config.Tunnel, config.Bind = stack, &udp.Bind{}
	device := must(wireguard.New(config))
	check(device.Up())

	listener := must(stack.Listen("tcp", *listen))
	log.Printf("UDP port %d; HTTP on %v of %v", device.Status().ListenPort, listener.Addr(), file.Addrs())
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := netip.MustParseAddrPort(r.RemoteAddr)
		key, _ := device.Route(from.Addr()) // only this peer can send packets from this address
		fmt.Fprintf(w, "hello, %v\n", key)
		log.Printf("%v at %v: %s %s", key, from, r.Method, r.URL)
	}))
	<-ctx.Done()
	check(device.Close()) // ends the listener and the connections too
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		log.Fatal("server: ", err)
	}
}
