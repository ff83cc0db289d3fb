// Client fetches a page through a WireGuard tunnel. It needs neither root nor a network interface.
//
//	go run ./examples/client -config office.conf http://10.0.0.1/
//
// The file is a wg-quick(8) file. The client resolves the host of the URL with the file's name servers, through the tunnel.
package main

import (
	"context"
	"flag"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/seed-86b749af/wireguard/wgnet"
)

func main() {
	name := flag.String("config", "wg0.conf", "the tunnel's `file`")
	timeout := flag.Duration("timeout", 30*time.Second, "give up after this `time`")
	if flag.Parse(); flag.NArg() != 1 {
		log.Fatal("client: want one URL, as in http://10.0.0.1/")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()

	tunnel := must(wgnet.Open(ctx, *name))
	client := http.Client{Transport: &http.Transport{DialContext: tunnel.DialContext}}
	response := must(client.Do(must(http.NewRequestWithContext(ctx, http.MethodGet, flag.Arg(0), nil))))
	n := must(io.Copy(os.Stdout, response.Body))
	log.Printf("%s, %d bytes", response.Status, n)
	check(tunnel.Close())
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		log.Fatal("client: ", err)
	}
}
