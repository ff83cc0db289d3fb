//go:build linux

package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// bulk is the size of a transfer in bytes. The emulated machine needs about a second for such a transfer.
const bulk = 2 << 20

func payload(n int) (b []byte, digest string) {
	b = make([]byte, n)
	rand.NewChaCha8([32]byte{7}).Read(b)
	d := sha256.Sum256(b)
	return b, hex.EncodeToString(d[:])
}

// TestTCP checks that a TCP connection carries its bytes unchanged, in each direction and each inner family, and that the byte
// counters of both peers agree.
func TestTCP(t *testing.T) {
	b, digest := payload(bulk)
	for family, name := range families {
		t.Run(name+"/to the kernel", func(t *testing.T) {
			p := newPair(t, setup{})
			got := p.inMachine("nc -l -p 7000 | sha256sum")
			var c net.Conn
			p.want("the machine accepts a TCP connection", func() (ok bool) {
				var err error
				c, err = p.net.Dial("tcp", netip.AddrPortFrom(kernelAddrs[family], 7000).String())
				return err == nil
			})
			// The data in flight waits in the buffer of QEMU's socket until QEMU has time to read it, so it must fit into that
			// buffer.
			if err := c.(*netstack.TCPConn).SetWriteBuffer(64 << 10); err != nil {
				t.Error(err)
			}
			if _, err := c.Write(b); err != nil {
				t.Error(err)
			}
			c.Close()
			if out := got(); !strings.Contains(out, digest) {
				t.Errorf("the bytes that the kernel received have the digest %s, want that of the bytes sent", out)
			}
			p.wantCounters()
		})
		t.Run(name+"/from the kernel", func(t *testing.T) {
			p := newPair(t, setup{})
			l, err := p.net.Listen("tcp", netip.AddrPortFrom(ourAddrs[family], 7000).String())
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			// The machine generates the data, prints their digest, and sends the data.
			sent := p.inMachine("dd if=/dev/urandom of=/tmp/bulk bs=64k count=%d 2>/dev/null\nsha256sum </tmp/bulk\nnc %v 7000 </tmp/bulk\nrm /tmp/bulk",
				bulk>>16, ourAddrs[family])
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			n, err := io.Copy(h, c)
			c.Close()
			if out := sent(); err != nil || n != bulk || !strings.Contains(out, hex.EncodeToString(h.Sum(nil))) {
				t.Errorf("we received %d bytes, %v, want %d bytes with the digest %s", n, err, bulk, out)
			}
			p.wantCounters()
		})
	}
}

// TestIperf3 runs iperf3 on the host as a client of iperf3 in the machine. The client connects to a port of loopback, which the
// test forwards through our stack and the tunnel. The test runs in both directions and both inner families.
func TestIperf3(t *testing.T) {
	iperf3, err := program("iperf3")
	if err != nil {
		t.Skip(err)
	}
	for family, name := range families {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, setup{})
			port := p.forward(t, netip.AddrPortFrom(kernelAddrs[family], 5201))
			for _, direction := range []string{"to", "from"} {
				t.Run(direction+" the kernel", func(t *testing.T) {
					p.sh("iperf3 -s -D -1\nuntil grep -q ':1451 [0-9A-F:]* 0A ' /proc/net/tcp6; do usleep 10000; done")
					args := []string{"-c", "127.0.0.1", "-p", fmt.Sprint(port), "-t", "1", "-J"}
					if direction == "from" {
						args = append(args, "-R")
					}
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					out, err := exec.CommandContext(ctx, iperf3, args...).Output()
					if err != nil {
						t.Fatalf("iperf3: %v\n%s", err, out)
					}
					var result struct {
						End struct {
							Received struct {
								Bytes int     `json:"bytes"`
								Rate  float64 `json:"bits_per_second"`
							} `json:"sum_received"`
						} `json:"end"`
					}
					if err := json.Unmarshal(out, &result); err != nil {
						t.Fatal(err)
					}
					if r := result.End.Received; r.Bytes == 0 {
						t.Errorf("iperf3 reports that no bytes arrived: %s", out)
					} else {
						t.Logf("%d bytes, %.1f Mbit/s", r.Bytes, r.Rate/1e6)
					}
				})
			}
		})
	}
}

// forward listens on a port of loopback. For each connection that it accepts, it opens a connection through the tunnel to the
// address in the parameter to, and copies bytes between the two connections. It stops when the test ends.
func (p *pair) forward(t *testing.T, to netip.AddrPort) (port int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := p.net.Dial("tcp", to.String())
			if err != nil {
				near.Close() // the server does not listen yet
				continue
			}
			for _, c := range [2][2]net.Conn{{near, far}, {far, near}} {
				wg.Go(func() {
					io.Copy(c[0], c[1])
					c[0].(interface{ CloseWrite() error }).CloseWrite()
				})
			}
			t.Cleanup(func() { near.Close(); far.Close() })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.dev.Close() // closes the connections through the tunnel too
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// TestPadding sends packets of various sizes, up to the MTU of 1420 bytes, in both directions. Our message for a packet is as long
// as the kernel's message for a packet of the same size: both pad the packet to a multiple of 16 bytes, but not beyond the MTU.
func TestPadding(t *testing.T) {
	p := newPair(t, setup{way: line4, packets: true})
	// Disable IPv6, because the kernel reports its multicast groups in packets that the test would count. Reports that are already
	// queued leave together with the kernel's answer to the first echo request, before the test begins to count.
	p.sh("echo 1 >/proc/sys/net/ipv6/conf/wg0/disable_ipv6")
	p.echo(0, 28, 0)
	for _, size := range []int{28, 32, 33, 47, 48, 49, 1391, 1392, 1393, 1408, 1409, 1416, 1417, 1419, 1420} {
		want := 32 + min((size+15)&^15, 1420)
		sent, answered := p.line.count(ours, pipe.TypeData), p.line.count(kernels, pipe.TypeData)
		p.echo(0, size, 0)
		request, answer := p.line.all(ours, pipe.TypeData)[sent:], p.line.all(kernels, pipe.TypeData)[answered:]
		if len(request) != 1 || len(answer) != 1 {
			t.Fatalf("a packet of %d bytes: we sent %d data messages and the kernel sent %d, want 1 each", size, len(request), len(answer))
		}
		if len(request[0].data) != want || len(answer[0].data) != want {
			t.Errorf("a packet of %d bytes: our message has %d bytes and the kernel's has %d, want %d", size, len(request[0].data), len(answer[0].data), want)
		}
	}
	p.wantCounters()
}

// TestFragments makes the MTU of the machine's network interface smaller than the kernel's messages. The kernel sends the messages
// without the flag "don't fragment" (DF), so they arrive in fragments. The test uses both outer families. Packets as large as the
// tunnel's MTU arrive, and both peers count messages and not fragments. Our device's messages do not depend on that MTU.
func TestFragments(t *testing.T) {
	for _, w := range []way{userNet, line4, line6} {
		t.Run(string(w), func(t *testing.T) {
			p := newPair(t, setup{way: w, packets: true})
			device := "eth1"
			if w == userNet {
				device = "eth0"
			}
			p.sh("ip link set %s mtu 1280", device)
			t.Cleanup(func() { p.m.script("ip link set " + device + " mtu 1500") })
			before := 0
			if w != userNet {
				// The kernel may still retransmit segments of an earlier test, and send them before its MTU changes. They come
				// before the answer to a packet that is sent after the change.
				p.echo(0, 28, 0)
				before = p.line.count(kernels, pipe.TypeData)
			}
			for family := range families {
				p.echo(family, 1420, 0)
				p.echo(family, 1420, 0)
			}
			p.wantCounters()
			if w == userNet {
				return
			}
			full := 0
			for _, d := range p.line.all(kernels, pipe.TypeData)[before:] {
				if len(d.data) < 1420 {
					continue // this is a query for multicast listeners, which the kernel sends occasionally
				}
				full++
				if d.fragments != 2 || d.df {
					t.Errorf("a message of %d bytes arrived in %d fragments with DF %v, want 2 fragments without DF", len(d.data), d.fragments, d.df)
				}
			}
			if full < 2*len(families) {
				t.Errorf("the kernel sent %d messages of full size, want at least %d", full, 2*len(families))
			}
		})
	}
}

// TestFullSize checks that our stack accepts pings as large as the tunnel's MTU from the kernel, and that the kernel accepts the
// replies, in both inner families.
func TestFullSize(t *testing.T) {
	p := newPair(t, setup{})
	p.sh("ping -c 2 -i 0.2 -W 30 -s 1392 %v", ourAddrs[0])
	p.sh("ping -c 2 -i 0.2 -W 30 -s 1372 %v", ourAddrs[1])
	p.wantCounters()
	if s := p.status(); s.Drops.Total() != 0 || time.Since(s.LastHandshake) > patience {
		t.Errorf("our device dropped %v, want nothing, and a handshake in the last 30 s", s.Drops)
	}
}
