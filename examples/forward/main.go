// Forward listens on a local TCP port and forwards each connection into a WireGuard tunnel.
//
//	go run ./examples/forward -config office.conf 127.0.0.1:8080 10.0.0.1:80
package main

import (
	"context"
	"flag"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"sync"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

func main() {
	name := flag.String("config", "wg0.conf", "the tunnel's `file`")
	if flag.Parse(); flag.NArg() != 2 {
		log.Fatal("forward: want two addresses, as in 127.0.0.1:8080 10.0.0.1:80")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	file := must(conf.ReadFile(*name))
	must(file, file.Resolve(ctx, conf.Resolution{}))
	stack := must(netstack.New(netstack.Config{Addresses: file.Addrs(), DNS: file.Interface.DNS, Search: file.Interface.Search, MTU: file.Interface.MTU}))
	config := must(file.Config())
	config.Tunnel, config.Bind = stack, &udp.Bind{}
	device := must(wireguard.New(config))
	defer must(device, device.Up()).Close() // resets the connections
	listener := must(net.Listen("tcp", flag.Arg(0)))
	context.AfterFunc(ctx, func() { listener.Close() })
	log.Printf("forwarding %v to %s", listener.Addr(), flag.Arg(1))
	for local, err := listener.Accept(); err == nil; local, err = listener.Accept() {
		go func() {
			defer local.Close()
			if remote, err := stack.DialContext(ctx, "tcp", flag.Arg(1)); err != nil {
				log.Print(err)
			} else {
				defer remote.Close()
				var both sync.WaitGroup // each direction ends independently
				both.Go(func() { io.Copy(remote, local); remote.(*netstack.TCPConn).CloseWrite() })
				both.Go(func() { io.Copy(local, remote); local.(*net.TCPConn).CloseWrite() })
				both.Wait()
			}
		}()
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal("forward: ", err)
	}
	return v
}
