//go:build linux

package netns

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/transport/tun"
)

// TestLossyPathToTheKernel lets a [netstack.Net] and the kernel's TCP send each other bulk data over a path with a delay and
// losses. All data must arrive unchanged. The Net's link layer, which is below gVisor's TCP, must detect lost segments and send
// them again before gVisor begins its own recovery, which would lower gVisor's congestion window.
//
//	Net ─ device ═══ wire: 20 ms, 1 % lost, 1 % out of order ═══ device ─ TUN ─ kernel's TCP  b
func TestLossyPathToTheKernel(t *testing.T) {
	t.Parallel()
	const port, size = 7000, 8 << 20
	ours, theirs := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2")
	b := newHost(t)
	wire := pipe.NewNetwork(pipe.Config{Seed: 1})
	wire.SetConditions(pipe.Conditions{Delay: 10 * time.Millisecond, Loss: 0.01, Reorder: 0.01})
	n, err := netstack.New(netstack.Config{Addresses: []netip.Addr{ours}})
	if err != nil {
		t.Fatal(err)
	}
	var iface *tun.Interface
	err = b.Do(func() (err error) {
		iface, err = tun.Open(tun.Config{Name: "long", MTU: 1420})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ends := [2]*pipe.End{wire.NewEnd(), wire.NewEnd()}
	devices.Pair(t,
		devices.Side{Tunnel: n, Bind: ends[0], At: ends[0].Endpoint, Inside: []netip.Prefix{netip.PrefixFrom(ours, 32)}},
		devices.Side{Tunnel: iface, Bind: ends[1], At: ends[1].Endpoint, Inside: []netip.Prefix{netip.PrefixFrom(theirs, 32)}})
	b.run("ip addr add %v peer %v dev long", theirs, ours)
	b.run("ip link set long up")

	var kernel net.Listener
	err = b.Do(func() (err error) {
		kernel, err = net.Listen("tcp", netip.AddrPortFrom(theirs, port).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	inside, err := n.Listen("tcp", fmt.Sprint(":", port))
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	for _, c := range []struct {
		name   string
		server net.Listener
		dial   func(context.Context) (net.Conn, error)
	}{
		{"the Net dials", kernel, func(ctx context.Context) (net.Conn, error) { return n.DialContext(ctx, "tcp", kernel.Addr().String()) }},
		{"the kernel dials", inside, func(ctx context.Context) (c net.Conn, err error) {
			err = b.Do(func() error {
				c, err = new(net.Dialer).DialContext(ctx, "tcp", netip.AddrPortFrom(ours, port).String())
				return err
			})
			return c, err
		}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		go func() {
			s, err := c.server.Accept()
			if err != nil {
				return
			}
			defer s.Close()
			_, _ = io.Copy(struct{ io.Writer }{s}, struct{ io.Reader }{s})
		}()
		begun := time.Now()
		conn, err := c.dial(ctx)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		sent, got := sha256.New(), sha256.New()
		written := make(chan error, 1)
		go func() {
			_, err := io.CopyN(io.MultiWriter(conn, sent), rand.NewChaCha8([32]byte{2}), size)
			written <- err
		}()
		k, err := io.CopyN(got, conn, size)
		if err != nil || <-written != nil || [32]byte(got.Sum(nil)) != [32]byte(sent.Sum(nil)) {
			t.Errorf("%s: %d bytes came back, or other bytes than were sent, with the error %v; want the %d bytes that were sent", c.name, k, err, size)
		}
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		if k, err := io.Copy(io.Discard, conn); k != 0 || err != nil {
			t.Errorf("%s: after all data, %d more bytes came back, with the error %v; want the end of the connection", c.name, k, err)
		}
		_ = conn.Close()
		t.Logf("%s: %d bytes there and back in %v", c.name, size, time.Since(begun).Round(time.Millisecond))
	}
	stats := n.Stack().Stats().TCP
	if again, own := stats.Retransmits.Value(), stats.SACKRecovery.Value(); again == 0 || own > 0 {
		t.Errorf("%d segments were sent again, and gVisor began %d recoveries; want some, and no recovery", again, own)
	}
}
