package wgnet_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/wgnet"
)

// This program fetches a page through the tunnel that a file describes.
func Example() {
	path, stop := serve() // a web server at 10.0.0.1, and the file of a client
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	t, err := wgnet.Open(ctx, path)
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()
	web := http.Client{Transport: &http.Transport{DialContext: t.DialContext}}
	r, err := web.Get("http://10.0.0.1/")
	if err != nil {
		log.Fatal(err)
	}
	io.Copy(os.Stdout, r.Body)
	// Output: hello, 10.0.0.2
}

// serve opens the server's end of a tunnel from a configuration in memory, and writes the client's file.
func serve() (path string, stop func()) {
	key, client := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	f, err := conf.Parse(fmt.Appendf(nil, "[Interface]\nPrivateKey = %s\nAddress = 10.0.0.1\n[Peer]\nPublicKey = %v\nAllowedIPs = 10.0.0.2/32\n",
		key.Text(), client.Public()))
	if err != nil {
		log.Fatal(err)
	}
	t, err := wgnet.OpenFile(context.Background(), f, wgnet.Config{})
	if err != nil {
		log.Fatal(err)
	}
	l, err := t.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello,", r.RemoteAddr[:8])
	}))
	folder, err := os.MkdirTemp("", "wgnet")
	if err != nil {
		log.Fatal(err)
	}
	path = filepath.Join(folder, "office.conf")
	text := fmt.Appendf(nil, "[Interface]\nPrivateKey = %s\nAddress = 10.0.0.2\n[Peer]\nPublicKey = %v\nAllowedIPs = 0.0.0.0/0\nEndpoint = 127.0.0.1:%d\n",
		client.Text(), key.Public(), t.Device().Status().ListenPort)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		log.Fatal(err)
	}
	return path, func() {
		t.Close()
		os.RemoveAll(folder)
	}
}
