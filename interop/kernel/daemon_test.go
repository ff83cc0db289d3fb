//go:build linux

package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/netlab"
)

const (
	daemonEnv  = "WIREGUARD_KERNEL_DAEMON" // an environment variable with the daemon's path; set only in the isolated process
	daemonLink = "wg1"                     // the daemon's interface; the machine's is wg0
	hostTAP    = "tap0"                    // the host's interface that is connected to the machine's eth1
)

// TestDaemon connects cmd/wg0, on a TUN with all offloads, with the kernel's WireGuard. It does so with IPv4 as the outer family,
// where the daemon sends the first ping, and with IPv6, where the kernel does. ping and iperf3 run in both directions in both inner
// families. The test checks that large packets cross the TUN in one piece, and that "wg show" reports the same number of bytes at
// both peers.
//
//	wg1 ─ cmd/wg0 ─ udp ─ tap0 10.9.0.1, fd09::1 ─ eth1 10.9.0.2, fd09::2 ─ wg0
func TestDaemon(t *testing.T) {
	program := os.Getenv(daemonEnv)
	if program == "" {
		isolated(t)
		return
	}
	h, err := netlab.NewHost("h")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	img, err := makeImage()
	if err != nil {
		t.Fatal(err)
	}
	// The TAP has a long queue, because packets wait there until QEMU has time to read them.
	p := daemonPair{host: h}
	p.t = t
	p.run("ip tuntap add dev %s mode tap vnet_hdr", hostTAP)
	p.run("ip link set %s address %v txqueuelen 10000 up", hostTAP, hostMAC)
	p.run("ip address add 10.9.0.1/24 dev %s", hostTAP)
	p.run("ip address add fd09::1/64 dev %s nodad", hostTAP)
	if p.m, err = start(img, h); err != nil {
		t.Fatal(err)
	}
	defer p.m.close()
	for outer, addrs := range [2][2]string{{"10.9.0.1", "10.9.0.2"}, {"fd09::1", "fd09::2"}} {
		t.Run(fmt.Sprintf("outer%d", 4+2*outer), func(t *testing.T) {
			p := daemonPair{pair: pair{t: t, m: p.m, key: wireguard.NewPrivateKey(), kernelKey: wireguard.NewPrivateKey()}, host: h}
			p.psk = wireguard.NewPresharedKey()
			p.daemonAt = netip.AddrPortFrom(netip.MustParseAddr(addrs[0]), guestPort)
			p.begin(program, netip.AddrPortFrom(netip.MustParseAddr(addrs[1]), guestPort))
			for family := range families {
				if outer == 0 {
					p.ping(family)
					p.pinged(family)
				} else {
					p.pinged(family)
					p.ping(family)
				}
			}
			var there, back counted // TCP traffic to and from the kernel
			for family, name := range families {
				before := p.traffic()
				p.iperf(family, name, "-n 2M -w 256K")
				between := p.traffic()
				p.iperf(family, name, "-n 2M -w 256K -R")
				there.add(between.Tx, before.Tx)
				back.add(p.traffic().Rx, between.Rx)
				p.iperf(family, name, "-u -b 10M -l 1300 -n 256K")
				p.iperf(family, name, "-u -b 10M -l 1300 -n 256K -R")
			}
			for direction, c := range map[string]counted{"to": there, "from": back} {
				if t.Logf("%s the kernel: %+v", direction, c); c.Bytes <= 1420*c.Packets {
					t.Errorf("%s the kernel: %d packets with %d bytes in all crossed the TUN, want more than 1420 bytes per packet on average", direction, c.Packets, c.Bytes)
				}
			}
			p.wantCounters()
		})
	}
}

// isolated runs the calling test in a process with its own namespaces.
func isolated(t *testing.T) {
	t.Helper()
	if missing := netlab.Missing("ip", "wg", "ping", "iperf3"); missing != "" {
		t.Skip(missing)
	}
	if _, err := makeImage(); err != nil {
		if strings.HasPrefix(err.Error(), "needs ") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "wg0")
	if err := netlab.Build("../..", "github.com/seed-86b749af/wireguard/cmd/wg0", program); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // the child process ends with the thread that started it
	defer runtime.UnlockOSThread()
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), daemonEnv+"="+program)
	netlab.Isolate(cmd)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// A daemonPair is a daemon and the kernel's wg0. The daemon replaces the fields dev, net and tun of the pair, which are nil.
type daemonPair struct {
	pair
	host *netlab.Host
}

// run runs a command line on the daemon's host.
func (p *daemonPair) run(format string, args ...any) string {
	p.t.Helper()
	return p.feed("", format, args...)
}

// feed does what run does, and passes input to the command's standard input.
func (p *daemonPair) feed(input, format string, args ...any) string {
	p.t.Helper()
	out, err := p.host.RunWith(input, fmt.Sprintf(format, args...))
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// begin brings up the daemon and the kernel's interface. They stay up until the test ends.
func (p *daemonPair) begin(program string, kernelAt netip.AddrPort) {
	p.t.Helper()
	d, err := p.host.StartDaemon(program, daemonLink)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(d.Kill)
	p.t.Cleanup(func() {
		if p.t.Failed() {
			out, err := p.m.script("ip -s link; wg; dmesg | tail -n 30")
			own, e := p.host.Run("ip -s link")
			p.t.Logf("the kernel:\n%s\nhere:\n%s\nthe daemon:\n%s\n%v", out, own, d.Log(), errors.Join(err, e))
		}
		p.m.script("ip link del wg0")
	})
	p.addKernel()
	p.run("ip link set %s mtu 1420 addrgenmode none", daemonLink)
	p.feed(p.key.Text(), "wg set %s private-key /dev/stdin listen-port %d", daemonLink, guestPort)
	p.feed(p.psk.Text(), "wg set %s peer %v preshared-key /dev/stdin endpoint %v allowed-ips %v,%v",
		daemonLink, p.kernelKey.Public(), kernelAt, kernelAddrs[0], kernelAddrs[1])
	p.run("ip address add %v/24 dev %s", ourAddrs[0], daemonLink)
	p.run("ip address add %v/64 dev %s nodad", ourAddrs[1], daemonLink)
	p.run("ip link set %s up", daemonLink)
}

// ping pings the kernel through the daemon.
func (p *daemonPair) ping(family int) {
	p.t.Helper()
	p.run("ping -n -c 1 -W %.0f %v", patience.Seconds(), kernelAddrs[family])
}

// iperf runs iperf3 on the daemon's host as a client of an iperf3 server in the machine.
func (p *daemonPair) iperf(family int, name, options string) {
	p.t.Helper()
	p.sh("iperf3 -s -D -1\nuntil grep -q ':1451 [0-9A-F:]* 0A ' /proc/net/tcp6; do usleep 10000; done")
	r, err := p.host.IperfClient(kernelAddrs[family], options)
	if err != nil {
		p.t.Fatal(err)
	}
	if r.Received.Bytes == 0 || r.Packets > 0 && r.Lost > r.Packets/2 {
		p.t.Errorf("iperf3 over %s with %s: %+v, want some bytes, and at most half of the packets lost", name, options, r)
	}
}

// A counted holds the counters of one direction of the daemon's interface. A large packet that crosses the TUN in one piece counts
// as one packet.
type counted struct{ Bytes, Packets uint64 }

// add adds the growth from one count, before, to a later one, after.
func (c *counted) add(after, before counted) {
	c.Bytes += after.Bytes - before.Bytes
	c.Packets += after.Packets - before.Packets
}

// traffic returns the counters of the daemon's interface from "ip -s link".
func (p *daemonPair) traffic() (s struct{ Rx, Tx counted }) {
	p.t.Helper()
	var links []struct {
		Stats64 struct{ Rx, Tx counted }
	}
	if err := json.Unmarshal([]byte(p.run("ip -s -j link show %s", daemonLink)), &links); err != nil || len(links) != 1 {
		p.t.Fatalf("ip link: %d links, %v", len(links), err)
	}
	return links[0].Stats64
}

// wantCounters waits until "wg show" reports the same numbers of bytes at both peers.
func (p *daemonPair) wantCounters() {
	p.t.Helper()
	p.sameCounters(func() (sent, received uint64) {
		var key string
		if _, err := fmt.Sscan(p.run("wg show %s transfer", daemonLink), &key, &received, &sent); err != nil || key != p.kernelKey.Public().String() {
			p.t.Fatalf("wg show: %v, peer %s, want the kernel's public key and two numbers", err, key)
		}
		return sent, received
	})
}
