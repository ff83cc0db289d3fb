package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const serverAddr, clientAddr = "10.7.0.1", "10.7.0.2"

// A server is the other end: a device whose stack echoes on TCP port 7, after "echo: ".
func startServer(t *testing.T, key wireguard.PrivateKey, peer wireguard.PeerConfig) (port uint16) {
	t.Helper()
	stack, err := netstack.New(netstack.Config{Addresses: []netip.Addr{netip.MustParseAddr(serverAddr)}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := wireguard.New(wireguard.Config{
		PrivateKey: key, Tunnel: stack, Bind: &udp.Bind{Address: netip.MustParseAddr("127.0.0.1")},
		Peers: []wireguard.PeerConfig{peer},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := d.Up(); err != nil {
		t.Fatal(err)
	}
	l, err := stack.Listen("tcp", serverAddr+":7")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, "echo: ")
				io.Copy(c, c)
			}()
		}
	}()
	return d.Status().ListenPort
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// The whole program against a server: connections, a refused one, and an interrupt amid an open one.
func TestForward(t *testing.T) {
	serverKey, clientKey, psk := wireguard.NewPrivateKey(), wireguard.NewPrivateKey(), wireguard.NewPresharedKey()
	port := startServer(t, serverKey, wireguard.PeerConfig{
		PublicKey: clientKey.Public(), PresharedKey: psk, AllowedIPs: []netip.Prefix{netip.MustParsePrefix(clientAddr + "/32")},
	})
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out, outWriter := io.Pipe()
	var errOut bytes.Buffer
	ended := make(chan int)
	go func() {
		ended <- run(ctx, []string{
			"-key", writeFile(t, clientKey.Text()), "-psk", writeFile(t, psk.Text()), "-v",
			"-address", clientAddr, "-peer", serverKey.Public().String(), "-endpoint", fmt.Sprintf("127.0.0.1:%d", port), "-allowed", serverAddr + "/32",
			"127.0.0.1:0=" + serverAddr + ":7", "127.0.0.1:0=" + serverAddr + ":9", "-keepalive", "25s",
		}, outWriter, &errOut)
		outWriter.Close()
	}()
	dial := func() net.Conn {
		t.Helper()
		var local, is, target string
		if _, err := fmt.Fscanln(out, &local, &is, &target); err != nil {
			t.Fatalf("%v\n%s", err, &errOut)
		}
		c, err := net.Dial("tcp", local)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return c
	}

	c := dial()
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	go func() {
		c.Write(data)
		c.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || string(got) != "echo: "+string(data) {
		t.Errorf("got %d bytes back, %v, want %d", len(got), err, 6+len(data))
	}
	refused := dial()
	if got, err := io.ReadAll(refused); len(got) > 0 {
		t.Errorf("from a port that nobody listens on came %q, %v", got, err)
	}
	open, err := net.Dial("tcp", c.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	open.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(open, make([]byte, 6)); err != nil {
		t.Errorf("a second connection: %v", err)
	}
	interrupt()
	if code := <-ended; code != 0 {
		t.Errorf("exit %d\n%s", code, &errOut)
	}
	for _, want := range []string{"handshake completed", "msg=forwarded", "level=WARN msg=forward"} {
		if !strings.Contains(errOut.String(), want) {
			t.Errorf("with -v it does not tell of %q:\n%s", want, &errOut)
		}
	}
}

func TestResolve(t *testing.T) {
	e, err := resolve(t.Context(), "localhost:51820")
	if err != nil || !e.Addr().IsLoopback() || e.Port() != 51820 {
		t.Errorf("localhost:51820 is %v, %v", e, err)
	}
}

func TestBadArguments(t *testing.T) {
	key := writeFile(t, wireguard.NewPrivateKey().Text())
	peer := wireguard.NewPrivateKey().Public().String()
	good := map[string]string{"-key": key, "-peer": peer, "-endpoint": "127.0.0.1:1", "-address": "10.0.0.1"}
	for _, c := range []struct {
		without string
		with    []string
		code    int
		says    string
	}{
		{"-key", nil, 2, "-key is missing"},
		{"-peer", nil, 2, "-peer is missing"},
		{"-endpoint", nil, 2, "-endpoint is missing"},
		{"-address", nil, 2, "-address is missing"},
		{"", nil, 2, "nothing to forward"},
		{"", []string{"8080"}, 2, "want LISTEN=TARGET"},
		{"", []string{"127.0.0.1:8080=10.0.0.1"}, 2, "want LISTEN=TARGET"},
		{"-key", []string{"-key", "/does/not/exist"}, 2, "/does/not/exist"},
		{"-key", []string{"-key", writeFile(t, "short")}, 2, "private key"},
		{"-peer", []string{"-peer", "x"}, 2, "public key"},
		{"", []string{"-mtu", "x"}, 2, "-mtu"},
		{"-endpoint", []string{"-endpoint", "127.0.0.1", "127.0.0.1:0=10.0.0.2:80"}, 1, "-endpoint"},
		{"-endpoint", []string{"-endpoint", "127.0.0.1:nonsense", "127.0.0.1:0=10.0.0.2:80"}, 1, "-endpoint"},
		{"", []string{"-mtu", "1", "127.0.0.1:0=10.0.0.2:80"}, 1, "MTU"},
		{"", []string{"-keepalive", "1ms", "127.0.0.1:0=10.0.0.2:80"}, 1, "keepalive"},
		{"", []string{"192.0.2.1:0=10.0.0.2:80"}, 1, "192.0.2.1"},
	} {
		var args []string
		for flag, value := range good {
			if flag != c.without {
				args = append(args, flag, value)
			}
		}
		var out, errOut bytes.Buffer
		if code := run(t.Context(), append(args, c.with...), &out, &errOut); code != c.code || !strings.Contains(errOut.String(), c.says) {
			t.Errorf("without %q, with %q: exit %d, %s, want %d and %q", c.without, c.with, code, &errOut, c.code, c.says)
		}
	}
	var out bytes.Buffer
	if code := run(t.Context(), []string{"-h"}, &out, io.Discard); code != 0 || !strings.Contains(out.String(), "-endpoint") {
		t.Errorf("-h: exit %d, %q", code, &out)
	}
}
