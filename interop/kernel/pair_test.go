//go:build linux

package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// patience is how long a test waits for an event that takes milliseconds on a fast machine.
const patience = 30 * time.Second

// Addresses inside the tunnel, IPv4 and IPv6.
var (
	ourAddrs    = [2]netip.Addr{netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("fd08::1")}
	kernelAddrs = [2]netip.Addr{netip.MustParseAddr("10.8.0.2"), netip.MustParseAddr("fd08::2")}
	families    = [2]string{"inner4", "inner6"}
)

func prefixes(addrs [2]netip.Addr) (ps []netip.Prefix) {
	for _, a := range addrs {
		ps = append(ps, netip.PrefixFrom(a, a.BitLen()))
	}
	return ps
}

// A way is a path between the device and the kernel: QEMU's user network, or the line of line_test.go with IPv4 or IPv6 as the
// outer family.
type way string

const (
	userNet way = "user" // QEMU's user network
	line4   way = "line4"
	line6   way = "line6"
)

// A shiftedClock is the system's clock, which a test can set forward.
type shiftedClock struct {
	start time.Time
	shift atomic.Int64
}

func (c *shiftedClock) Now() time.Duration {
	return time.Since(c.start) + time.Duration(c.shift.Load())
}
func (c *shiftedClock) Wall() time.Time { return time.Now().Add(time.Duration(c.shift.Load())) }

// forward sets the clock forward.
func (c *shiftedClock) forward(d time.Duration) { c.shift.Add(int64(d)) }

// A setup describes a pair. The zero value means the user network, no preshared key, and that each peer is configured with the
// other peer's endpoint.
type setup struct {
	way     way
	psk     wireguard.PresharedKey
	packets bool // the device's Tunnel is a pipe.Tunnel that the test controls, not a netstack.Net

	kernelPeer  string // further arguments of the "wg set" that adds the device to the kernel's peers
	kernelMTU   int    // MTU of wg0; 0 means 1420
	noKernelsAt bool   // the device does not know the kernel's endpoint
	givesWay    bool   // the device has the greater public key, so it lets the kernel retry first if initiations cross
}

// A pair is a device, the kernel's wg0, and the path between them.
type pair struct {
	setup
	t         *testing.T
	m         *machine
	line      *line          // nil on the user network
	daemonAt  netip.AddrPort // the address at which the kernel reaches a daemon that replaces dev
	clock     *shiftedClock
	dev       *wireguard.Device
	net       *netstack.Net
	tun       *pipe.Tunnel // replaces net if setup.packets is set
	key       wireguard.PrivateKey
	kernelKey wireguard.PrivateKey
	sequence  uint16 // sequence number of the last echo request
}

func newPair(t *testing.T, s setup) *pair {
	t.Helper()
	p := &pair{
		setup: s, t: t, m: guest(t), clock: &shiftedClock{start: time.Now()},
		key: wireguard.NewPrivateKey(), kernelKey: wireguard.NewPrivateKey(),
	}
	if a, b := p.key.Public(), p.kernelKey.Public(); p.givesWay && bytes.Compare(a[:], b[:]) < 0 {
		p.key, p.kernelKey = p.kernelKey, p.key
	}
	if p.way == "" {
		p.way = userNet
	}
	if p.way != userNet {
		p.line = newLine(t, p.m.wire, p.way == line6)
	}
	p.open(0)
	t.Cleanup(func() { p.dev.Close() })
	t.Cleanup(func() {
		if t.Failed() {
			out, err := p.m.script("ip -s link show wg0; wg; dmesg | tail -n 30")
			t.Logf("ours: %+v\n%+v\nthe kernel (%v):\n%s", p.dev.Status().Drops, p.status(), err, out)
		}
		p.m.script("ip link del wg0")
	})
	p.addKernel()
	return p
}

// open makes the device and brings it up on a UDP port. Port 0 means any free port.
func (p *pair) open(port uint16) {
	p.t.Helper()
	var tunnel wireguard.Tunnel
	if p.packets {
		p.tun = pipe.NewTunnel(1420)
		tunnel = p.tun
	} else {
		var err error
		if p.net, err = netstack.New(netstack.Config{Addresses: ourAddrs[:]}); err != nil {
			p.t.Fatal(err)
		}
		tunnel = p.net
	}
	peer := wireguard.PeerConfig{PublicKey: p.kernelKey.Public(), PresharedKey: p.psk, AllowedIPs: prefixes(kernelAddrs)}
	if !p.noKernelsAt {
		peer.Endpoint = wireguard.EndpointOf(p.kernelAt())
	}
	var err error
	p.dev, err = wireguard.New(wireguard.Config{
		PrivateKey: p.key, ListenPort: port, Tunnel: tunnel, Bind: &udp.Bind{}, Clock: p.clock, Peers: []wireguard.PeerConfig{peer},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.dev.Up(); err != nil {
		p.t.Fatal(err)
	}
	if p.line != nil {
		p.line.locate(netip.AddrPortFrom(p.line.inside.Addr(), p.dev.Status().ListenPort))
	}
}

// reopen replaces the device by a new one with the same keys and port. The new device has no other state of the old one.
func (p *pair) reopen() {
	p.t.Helper()
	port := p.dev.Status().ListenPort
	p.dev.Close()
	p.open(port)
}

// kernelAt returns the address to which the device sends messages for the kernel.
func (p *pair) kernelAt() netip.AddrPort {
	if p.line != nil {
		return p.line.inside
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.m.port)
}

// deviceAt returns the address to which the kernel sends messages for the device.
func (p *pair) deviceAt() netip.AddrPort {
	if p.line != nil {
		p.line.mu.Lock()
		defer p.line.mu.Unlock()
		return p.line.outside
	}
	if p.daemonAt.IsValid() {
		return p.daemonAt
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 2, 2}), p.dev.Status().ListenPort)
}

// addKernel creates the interface wg0 in the machine, with the device as its peer.
func (p *pair) addKernel() {
	p.t.Helper()
	mtu := p.kernelMTU
	if mtu == 0 {
		mtu = 1420
	}
	p.sh(`ip link add wg0 mtu %d type wireguard
echo %s >/tmp/key
wg set wg0 private-key /tmp/key listen-port %d
%s
ip addr add %v/24 dev wg0
ip -6 addr add %v/64 dev wg0 nodad
ip link set wg0 addrgenmode none up`, mtu, p.kernelKey.Text(), guestPort, p.kernelPeerScript(), kernelAddrs[0], kernelAddrs[1])
}

// kernelPeerScript returns a script that adds the device to the kernel's peers.
func (p *pair) kernelPeerScript() string {
	return fmt.Sprintf("echo %s >/tmp/psk\nwg set wg0 peer %s preshared-key /tmp/psk endpoint %v allowed-ips %v,%v %s",
		p.psk.Text(), p.key.Public(), p.deviceAt(), ourAddrs[0], ourAddrs[1], p.kernelPeer)
}

// sh runs a script in the machine and returns its output. If the script fails, the test fails.
func (p *pair) sh(format string, args ...any) string {
	p.t.Helper()
	script := fmt.Sprintf(format, args...)
	out, err := p.m.script(script)
	if err != nil {
		p.t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	return out
}

// A kernelStatus is what "wg show wg0 dump" in the machine reports about the device.
type kernelStatus struct {
	endpoint  string
	handshake time.Time // zero means never
	rx, tx    uint64
}

func (p *pair) kernel() (s kernelStatus) {
	p.t.Helper()
	for line := range strings.Lines(p.sh("wg show wg0 dump")) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) < 8 || f[0] != p.key.Public().String() {
			continue
		}
		seconds, _ := strconv.ParseInt(f[4], 10, 64)
		if seconds != 0 {
			s.handshake = time.Unix(seconds, 0)
		}
		s.endpoint = f[2]
		s.rx, _ = strconv.ParseUint(f[5], 10, 64)
		s.tx, _ = strconv.ParseUint(f[6], 10, 64)
		return s
	}
	p.t.Fatal("the kernel does not have the device as its peer")
	return s
}

func (p *pair) status() wireguard.PeerStatus {
	s, _ := p.dev.Peer(p.kernelKey.Public())
	return s
}

func (p *pair) configure(c wireguard.Change) {
	p.t.Helper()
	if err := p.dev.Configure(c); err != nil {
		p.t.Fatal(err)
	}
}

// want waits until ok returns true. The string what describes that condition in the error message.
func (p *pair) want(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("this did not happen in time: %s", what)
		}
	}
}

// ping makes the device ping the kernel's address inside the tunnel: the IPv4 address if family is 0, the IPv6 address if it is 1.
func (p *pair) ping(family int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := p.net.Ping(ctx, kernelAddrs[family]); err != nil {
		p.t.Fatal(err)
	}
}

// pinged makes the kernel ping the device's address inside the tunnel: the IPv4 address if family is 0, the IPv6 address if it is
// 1.
func (p *pair) pinged(family int) {
	p.t.Helper()
	p.sh("ping -c 1 -W 30 %v", ourAddrs[family])
}

// handshake makes the device establish a session.
func (p *pair) handshake() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.dev.Handshake(ctx, p.kernelKey.Public())
}

// wantCounters waits until each peer has received as many bytes as the other one has sent, according to their counters.
func (p *pair) wantCounters() {
	p.t.Helper()
	p.sameCounters(func() (sent, received uint64) {
		s := p.status()
		return s.Sent.Bytes, s.Received.Bytes
	})
}

// sameCounters calls our until the kernel has received as many bytes as our reports as sent, and has sent as many as our reports as
// received.
func (p *pair) sameCounters(our func() (sent, received uint64)) {
	p.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		k := p.kernel()
		sent, received := our()
		if k.rx == sent && k.tx == received && k.rx > 0 {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("the kernel received %d of the %d bytes that we sent, and we received %d of the %d bytes that it sent", k.rx, sent, received, k.tx)
		}
	}
}

// inMachine starts a script in the machine and returns at once. The function wait waits until the script ends, and returns the
// script's output. If the script has failed, wait fails the test.
func (p *pair) inMachine(format string, args ...any) (wait func() string) {
	script := fmt.Sprintf(format, args...)
	type result struct {
		out string
		err error
	}
	c := make(chan result, 1)
	go func() {
		out, err := p.m.script(script)
		c <- result{out, err}
	}()
	return func() string {
		p.t.Helper()
		r := <-c
		if r.err != nil {
			p.t.Fatalf("%v\n%s\n%s", r.err, script, r.out)
		}
		return r.out
	}
}

// fails runs a script in the machine and reports whether the script fails. If the machine does not answer, the test fails.
func (p *pair) fails(format string, args ...any) bool {
	p.t.Helper()
	out, err := p.m.script(fmt.Sprintf(format, args...))
	if err != nil && !errors.As(err, new(statusError)) {
		p.t.Fatal(err, out)
	}
	return err != nil
}
