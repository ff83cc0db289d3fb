package wgo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
)

// A node is one end of a tunnel over loopback UDP. It has a device of this library or of wireguard-go, and a stack of
// wireguard-go's package tun/netstack.
type node struct {
	key   wireguard.PrivateKey
	addr  netip.Addr // the address inside the tunnel
	stack *netstack.Net
	port  uint16            // the UDP port of the device
	tcp   uint16            // counts exchanges; each uses another TCP port, because a stack frees a port only after a while
	mine  *wireguard.Device // the device; nil if it is a device of wireguard-go
}

// A maker makes the device of n with a stack's tun.Device. peer is the other node. to is the peer's address, or the zero value
// if the peer begins the handshake.
type maker func(t *testing.T, n *node, dev tun.Device, peer *node, to netip.AddrPort)

// theirs returns a maker of wireguard-go's devices. The maker calls wrapTUN and wrapBind to wrap the tun.Device and the conn.Bind
// of the device.
func theirs(wrapTUN func(tun.Device) tun.Device, wrapBind func(conn.Bind) conn.Bind) maker {
	return func(t *testing.T, n *node, dev tun.Device, peer *node, to netip.AddrPort) {
		d := device.NewDevice(wrapTUN(dev), wrapBind(conn.NewStdNetBind()), device.NewLogger(device.LogLevelSilent, ""))
		t.Cleanup(d.Close)
		public := peer.key.Public()
		private, err := hexKey(n.key.Text())
		if err != nil {
			t.Fatal(err)
		}
		config := fmt.Sprintf("private_key=%s\npublic_key=%x\nallowed_ip=%v/%d\n", private, public[:], peer.addr, peer.addr.BitLen())
		if to.IsValid() {
			config += fmt.Sprintf("endpoint=%v\n", to)
		}
		if err := d.IpcSet(config); err != nil {
			t.Fatal(err)
		}
		if err := d.Up(); err != nil {
			t.Fatal(err)
		}
		state, err := d.IpcGet()
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := strings.Cut(state, "listen_port=")
		port, _, _ = strings.Cut(port, "\n")
		p, err := strconv.Atoi(port)
		if err != nil {
			t.Fatalf("IpcGet returned no port: %q", state)
		}
		n.port = uint16(p)
	}
}

func hexKey(text string) (string, error) {
	var k wireguard.PublicKey // parse the private key as a public key, which has the same text form and whose bytes can be read
	err := k.UnmarshalText([]byte(text))
	return hex.EncodeToString(k[:]), err
}

// ours makes a device of this library with wireguard-go's tun.Device and conn.Bind.
func ours(t *testing.T, n *node, dev tun.Device, peer *node, to netip.AddrPort) {
	d := devices.Up(t, wireguard.Config{
		PrivateKey: n.key,
		Tunnel:     Tunnel(dev),
		Bind:       Bind(conn.NewStdNetBind()),
		Peers: []wireguard.PeerConfig{{
			PublicKey:  peer.key.Public(),
			Endpoint:   wireguard.Endpoint{Addr: to},
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(peer.addr, peer.addr.BitLen())},
		}},
	})
	n.mine, n.port = d, d.Status().ListenPort
}

var (
	plain     = theirs(func(d tun.Device) tun.Device { return d }, func(b conn.Bind) conn.Bind { return b })
	bothWays  = theirs(thereAndBack, func(b conn.Bind) conn.Bind { return ConnBind(Bind(b)) })
	makers    = map[string]maker{"theirs": plain, "theirs through ours": bothWays, "ours": ours}
	loopbacks = map[string]netip.Addr{"IPv4": netip.MustParseAddr("127.0.0.1"), "IPv6": netip.IPv6Loopback()}
)

func thereAndBack(d tun.Device) tun.Device {
	back, err := TUNDevice(Tunnel(d))
	if err != nil {
		panic(err)
	}
	return back
}

// pair returns two nodes that reach each other over loopback. b begins the handshake.
func pair(t *testing.T, makeA, makeB maker, loopback netip.Addr) (a, b *node) {
	t.Helper()
	inside := [2]string{"10.0.0.1", "10.0.0.2"}
	if loopback.Is6() {
		inside = [2]string{"fd00::1", "fd00::2"}
	}
	a = &node{key: wireguard.NewPrivateKey(), addr: netip.MustParseAddr(inside[0])}
	b = &node{key: wireguard.NewPrivateKey(), addr: netip.MustParseAddr(inside[1])}
	var devs [2]tun.Device
	for i, n := range []*node{a, b} {
		var err error
		if devs[i], n.stack, err = netstack.CreateNetTUN([]netip.Addr{n.addr}, nil, 1420); err != nil {
			t.Fatal(err)
		}
	}
	makeA(t, a, devs[0], b, netip.AddrPort{})
	makeB(t, b, devs[1], a, netip.AddrPortFrom(loopback, a.port))
	return a, b
}

// exchange sends n bytes in each direction over one TCP connection from b to a, and checks that the same bytes arrive. When it
// returns, the connection is closed, so that the stacks may be closed.
func exchange(t *testing.T, a, b *node, n int) {
	t.Helper()
	a.tcp++
	at := netip.AddrPortFrom(a.addr, 1000+a.tcp)
	l, err := a.stack.ListenTCPAddrPort(at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(data)
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			err = bothDirections(c, data)
		}
		done <- err
	}()
	c, err := b.stack.DialTCPAddrPort(at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := bothDirections(c, data); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func bothDirections(c net.Conn, data []byte) error {
	c.SetDeadline(time.Now().Add(20 * time.Second))
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		wrote <- err
	}()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		return fmt.Errorf("the received data has the digest %x, want %x", sha256.Sum256(got), sha256.Sum256(data))
	}
	return <-wrote
}

// TestInterop checks that each kind of device can exchange packets with every kind, over real sockets.
func TestInterop(t *testing.T) {
	for nameA, a := range makers {
		for nameB, b := range makers {
			if nameA == nameB && nameA == "theirs" {
				continue // no code of this library would run
			}
			for family, loopback := range loopbacks {
				t.Run(fmt.Sprintf("%s called by %s/%s", nameA, nameB, family), func(t *testing.T) {
					a, b := pair(t, a, b, loopback)
					exchange(t, a, b, 1<<18)
				})
			}
		}
	}
}

// TestOurDeviceChangesPortOverTheirBind checks that a device of this library with wireguard-go's tun.Device and conn.Bind still
// works after a change of its port, after Wake, and after Down and Up.
func TestOurDeviceChangesPortOverTheirBind(t *testing.T) {
	a, b := pair(t, plain, ours, loopbacks["IPv4"])
	exchange(t, a, b, 1<<16)
	sock, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	taken := uint16(sock.LocalAddr().(*net.UDPAddr).Port)
	before := b.mine.Status().ListenPort
	if err := b.mine.Configure(wireguard.Change{ListenPort: &taken}); err == nil {
		t.Error("Configure succeeded with a port that is in use")
	}
	if now := b.mine.Status().ListenPort; now != before {
		t.Errorf("the device listens on port %d after a change that failed, want %d", now, before)
	}
	exchange(t, a, b, 1<<16)
	sock.Close()
	if err := b.mine.Configure(wireguard.Change{ListenPort: &taken}); err != nil || b.mine.Status().ListenPort != taken {
		t.Errorf("the device listens on port %d, error %v; want port %d", b.mine.Status().ListenPort, err, taken)
	}
	exchange(t, a, b, 1<<16)
	if err := b.mine.Wake(); err != nil || b.mine.Status().ListenPort != taken {
		t.Errorf("the device listens on port %d after Wake, error %v; want port %d", b.mine.Status().ListenPort, err, taken)
	}
	exchange(t, a, b, 1<<16)
	b.mine.Down()
	time.Sleep(50 * time.Millisecond) // wireguard-go refuses a second initiation within 20 ms
	if err := b.mine.Up(); err != nil {
		t.Fatal(err)
	}
	exchange(t, a, b, 1<<16)
}

// TestOurDeviceEndsWithTheirTUN checks that a device ends when its tun.Device is closed by other code, and that Device.Err
// returns the reason.
func TestOurDeviceEndsWithTheirTUN(t *testing.T) {
	dev, _, err := netstack.CreateNetTUN([]netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil, 1420)
	if err != nil {
		t.Fatal(err)
	}
	fake := &once{Device: dev}
	d, err := wireguard.New(wireguard.Config{Tunnel: Tunnel(fake), Bind: Bind(conn.NewStdNetBind())})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Up(); err != nil {
		t.Fatal(err)
	}
	fake.Close()
	<-d.Done()
	if err := d.Err(); err == nil || !strings.Contains(err.Error(), "has gone") {
		t.Errorf("Err returned %v, want one that says that the tun.Device has gone", err)
	}
}

// A once is a tun.Device whose Close may be called twice.
type once struct {
	tun.Device
	closing sync.Once
}

func (o *once) Close() (err error) {
	o.closing.Do(func() { err = o.Device.Close() })
	return err
}
