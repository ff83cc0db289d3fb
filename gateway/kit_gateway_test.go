package gateway_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/gateway"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world is a gateway with two peers. Each peer has its own netstack.Net:
//
//	peer 0, 10.7.0.2 ─┐
//	                  ├─ gateway 10.7.0.1 ─ the host's sockets
//	peer 1, 10.7.0.3 ─┘
type world struct {
	*gateway.Gateway
	stack   *netstack.Net
	device  *wireguard.Device
	clients [2]*netstack.Net
	keys    [2]wireguard.PublicKey
}

var (
	tunnel  = netip.MustParsePrefix("10.7.0.0/24")
	inside  = netip.MustParseAddr("10.7.0.1")
	addrs   = [2]netip.Addr{netip.MustParseAddr("10.7.0.2"), netip.MustParseAddr("10.7.0.3")}
	far     = netip.MustParseAddr("203.0.113.1")
	distant = netip.MustParseAddr("203.0.113.2")
)

// toLoopback sends each flow to the same port of the host's loopback address.
func toLoopback(r gateway.Request) gateway.Verdict {
	return gateway.Verdict{Allow: true, To: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.Destination.Port())}
}

func newWorld(t testing.TB, c gateway.Config) *world {
	t.Helper()
	w := &world{Gateway: must(gateway.New(c))(t)}
	wire := pipe.NewNetwork(pipe.Config{})
	end := wire.NewEnd()
	key := wireguard.NewPrivateKey()
	w.stack = must(netstack.New(netstack.Config{Addresses: []netip.Addr{inside}, Forward: w.Forward}))(t)
	config := wireguard.Config{PrivateKey: key, Tunnel: w.stack, Bind: end, ListenPort: 51820}
	var keys [2]wireguard.PrivateKey
	for i := range keys {
		keys[i] = wireguard.NewPrivateKey()
		w.keys[i] = keys[i].Public()
		config.Peers = append(config.Peers, wireguard.PeerConfig{
			PublicKey: w.keys[i], AllowedIPs: []netip.Prefix{netip.PrefixFrom(addrs[i], 32)},
		})
	}
	w.device = up(t, config)
	t.Cleanup(func() { _ = w.Close() })
	for i := range keys {
		w.clients[i] = must(netstack.New(netstack.Config{Addresses: []netip.Addr{addrs[i]}}))(t)
		up(t, wireguard.Config{
			PrivateKey: keys[i], Tunnel: w.clients[i], Bind: wire.NewEnd(),
			Peers: []wireguard.PeerConfig{{
				PublicKey: key.Public(), Endpoint: end.Endpoint(51820),
				AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
			}},
		})
	}
	return w
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func up(t testing.TB, c wireguard.Config) *wireguard.Device {
	t.Helper()
	d := must(wireguard.New(c))(t)
	t.Cleanup(func() { _ = d.Close() })
	if err := d.Up(); err != nil {
		t.Fatal(err)
	}
	return d
}

// dial opens a TCP connection of peer i.
func (w *world) dial(t testing.TB, i int, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := w.clients[i].DialContext(ctx, "tcp", to.String())
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// socket opens a UDP socket of peer i.
func (w *world) socket(t testing.TB, i int) net.PacketConn {
	t.Helper()
	c := must(w.clients[i].ListenPacket("udp4", ":0"))(t)
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// echo starts a TCP server on the host's loopback interface that sends back what it reads. It returns the server's port.
func echo(t testing.TB) uint16 {
	t.Helper()
	return serve(t, func(c net.Conn) {
		_, _ = io.Copy(c, c)
	})
}

// serve starts a TCP server on the host's loopback interface and returns its port. handle serves each connection.
func serve(t testing.TB, handle func(net.Conn)) uint16 {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// host opens a UDP socket on one of the host's loopback addresses.
func host(t testing.TB, address string) *net.UDPConn {
	t.Helper()
	c := must(net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address))))(t)
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func portOf(c net.PacketConn) uint16 { return uint16(c.LocalAddr().(*net.UDPAddr).Port) }

func send(t testing.TB, c net.PacketConn, text string, to netip.AddrPort) {
	t.Helper()
	if _, err := c.WriteTo([]byte(text), net.UDPAddrFromAddrPort(to)); err != nil {
		t.Fatal(err)
	}
}

func receive(t testing.TB, c net.PacketConn) (string, netip.AddrPort) {
	t.Helper()
	b := make([]byte, 65536)
	n, from, err := c.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n]), from.(*net.UDPAddr).AddrPort()
}

// eventually waits until ok returns true, and fails the test with the message what after 30 s.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
