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

// patience is for what takes milliseconds, or as long as an emulated machine needs for it.
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

// A way leads from the device to the kernel.
type way string

const (
	userNet way = "user" // QEMU's user network
	line4   way = "line4"
	line6   way = "line6"
)

// A shiftedClock is the system's, set forward by a test.
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

// A setup says what a pair is. The zero value is the user network and no preshared key; each knows the other's endpoint.
type setup struct {
	way     way
	psk     wireguard.PresharedKey
	packets bool // the device's plaintext side is a pipe.Tunnel in the test's hands, not a stack

	kernelPeer  string // further arguments of wg set for the device as the kernel's peer
	kernelMTU   int    // wg0's; 0: 1420
	noKernelsAt bool   // the device does not know the kernel's endpoint
	givesWay    bool   // the device's public key is the greater one: it lets the kernel go first where initiations cross
}

// A pair is a device and the kernel's wg0, and what is between them.
type pair struct {
	setup
	t         *testing.T
	m         *machine
	line      *line          // nil on the user network
	daemonAt  netip.AddrPort // where the kernel reaches a daemon, which stands for dev
	clock     *shiftedClock
	dev       *wireguard.Device
	net       *netstack.Net
	tun       *pipe.Tunnel // instead of net with setup.packets
	key       wireguard.PrivateKey
	kernelKey wireguard.PrivateKey
	sequence  uint16 // of the last echo request
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

// open makes our device and brings it up on port; 0 means any.
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

// reopen is a restart of the device: the same keys and port, nothing else.
func (p *pair) reopen() {
	p.t.Helper()
	port := p.dev.Status().ListenPort
	p.dev.Close()
	p.open(port)
}

// kernelAt is where the device reaches the kernel.
func (p *pair) kernelAt() netip.AddrPort {
	if p.line != nil {
		return p.line.inside
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.m.port)
}

// deviceAt is where the kernel reaches the device.
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

// addKernel makes the kernel's interface.
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

// kernelPeerScript adds the device to the kernel's peers.
func (p *pair) kernelPeerScript() string {
	return fmt.Sprintf("echo %s >/tmp/psk\nwg set wg0 peer %s preshared-key /tmp/psk endpoint %v allowed-ips %v,%v %s",
		p.psk.Text(), p.key.Public(), p.deviceAt(), ourAddrs[0], ourAddrs[1], p.kernelPeer)
}

// sh runs a script in the machine, which must succeed.
func (p *pair) sh(format string, args ...any) string {
	p.t.Helper()
	script := fmt.Sprintf(format, args...)
	out, err := p.m.script(script)
	if err != nil {
		p.t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	return out
}

// A kernelStatus is the kernel's view of the device, by wg show dump.
type kernelStatus struct {
	endpoint  string
	handshake time.Time // zero: never
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

// want waits until a condition holds.
func (p *pair) want(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("never happened: %s", what)
		}
	}
}

// ping has the device ping the kernel, of the family.
func (p *pair) ping(family int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := p.net.Ping(ctx, kernelAddrs[family]); err != nil {
		p.t.Fatal(err)
	}
}

// pinged has the kernel ping the device.
func (p *pair) pinged(family int) {
	p.t.Helper()
	p.sh("ping -c 1 -W 30 %v", ourAddrs[family])
}

// handshake has the device make a session.
func (p *pair) handshake() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.dev.Handshake(ctx, p.kernelKey.Public())
}

// wantCounters waits until both ends have counted the same: what one sent, the other received.
func (p *pair) wantCounters() {
	p.t.Helper()
	p.sameCounters(func() (sent, received uint64) {
		s := p.status()
		return s.Sent.Bytes, s.Received.Bytes
	})
}

// sameCounters waits until the kernel has counted the same as we.
func (p *pair) sameCounters(our func() (sent, received uint64)) {
	p.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		k := p.kernel()
		sent, received := our()
		if k.rx == sent && k.tx == received && k.rx > 0 {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("the kernel received %d of %d bytes sent, we received %d of its %d", k.rx, sent, received, k.tx)
		}
	}
}

// inMachine runs a script in the machine beside the test; wait returns what it printed, or fails the test.
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

// fails reports that a script failed with a status; a machine that does not answer is another matter.
func (p *pair) fails(format string, args ...any) bool {
	p.t.Helper()
	out, err := p.m.script(fmt.Sprintf(format, args...))
	if err != nil && !errors.As(err, new(statusError)) {
		p.t.Fatal(err, out)
	}
	return err != nil
}
