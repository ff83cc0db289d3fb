//go:build linux && !android

package tun

import (
	"crypto/sha256"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// transfer sends n bytes over TCP from x to y and checks them.
func (l link) transfer(t testing.TB, v6 bool, n int) {
	t.Helper()
	var listener net.Listener
	l.y.do(t, func() {
		var err error
		if listener, err = net.Listen("tcp", net.JoinHostPort(l.address(v6), "0")); err != nil {
			t.Fatal(err)
		}
	})
	defer listener.Close()
	want := make(chan [32]byte, 1)
	go func() {
		defer close(want)
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		h := sha256.New()
		_, _ = io.Copy(h, c)
		want <- [32]byte(h.Sum(nil))
	}()
	var conn net.Conn
	l.x.do(t, func() {
		var err error
		if conn, err = net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second); err != nil {
			t.Fatal(err)
		}
	})
	defer conn.Close()
	data := make([]byte, n)
	rand.New(rand.NewSource(1)).Read(data)
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := <-want; got != sha256.Sum256(data) {
		t.Fatal("other data arrived than was sent")
	}
}

// TestTCP carries connections of the kernel's over two interfaces that are joined in the process: what one kernel hands
// over in large packets is cut, and merged again for the other.
func TestTCP(t *testing.T) {
	l := newLink(t, Config{})
	join(t, l.a, l.b, nil)
	for _, v6 := range []bool{false, true} {
		l.transfer(t, v6, 8<<20)
	}
	a, b := l.a.Stats(), l.b.Stats()
	if a.ReadCalls*4 > a.ReadPackets {
		t.Errorf("%d packets were read in %d calls: the kernel does not segment", a.ReadPackets, a.ReadCalls)
	}
	if b.Merged*2 < b.WrittenPackets {
		t.Errorf("of %d packets, %d were merged", b.WrittenPackets, b.Merged)
	}
	for _, s := range []Stats{a, b} {
		if s.Malformed+s.Full+s.Down+s.Invalid+s.Refused > 0 {
			t.Errorf("packets were dropped or refused: %+v", s)
		}
	}
}

// TestDevices carries a connection through two devices of this library, and closes all of it.
//
//	x: wg0 ══ device ── 127.0.0.1 ── device ══ wg0 :y
func TestDevices(t *testing.T) {
	l := newLink(t, Config{})
	keyA, keyB := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	bind := udp.Bind{Address: netip.MustParseAddr("127.0.0.1")}
	start := func(c wireguard.Config) *wireguard.Device {
		d, err := wireguard.New(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		if err := d.Up(); err != nil {
			t.Fatal(err)
		}
		return d
	}
	b := start(wireguard.Config{PrivateKey: keyB, Tunnel: l.b, Bind: bind, Peers: []wireguard.PeerConfig{{PublicKey: keyA.Public(), AllowedIPs: all}}})
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), b.Status().ListenPort)
	start(wireguard.Config{PrivateKey: keyA, Tunnel: l.a, Bind: bind, Peers: []wireguard.PeerConfig{{PublicKey: keyB.Public(), AllowedIPs: all, Endpoint: wireguard.EndpointOf(to)}}})
	for _, v6 := range []bool{false, true} {
		l.transfer(t, v6, 16<<20)
	}
	t.Log(l)
}
