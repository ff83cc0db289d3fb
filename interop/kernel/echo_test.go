//go:build linux

package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/transport/netstack"
)

// echoes is how many connections TestEcho opens in each case, one after the other.
var echoes = flag.Int("echoes", 2, "connections of 2 MiB each way per case of TestEcho")

// TestEcho sends bulk data in both directions of a TCP connection. The echo server runs in the kernel's machine in one half of the
// cases, and on our stack in the other half. The server reads no more than it can write, so TCP's windows close and open again.
// Neither the kernel's TCP nor gVisor's may drop a segment without which the other one cannot continue. The guards of
// transport/netstack/window.go change segments so that this does not happen. Without the guards, none of 40 connections of this
// test stalled. So the test does not show that the guards are needed. It shows that Linux accepts the segments that they change.
func TestEcho(t *testing.T) {
	b, digest := payload(bulk)
	shrink := func(t *testing.T, c net.Conn) {
		// With small buffers, windows close often, and the data in flight fits into the buffer of QEMU's socket.
		if err := errors.Join(c.(*netstack.TCPConn).SetReadBuffer(64<<10), c.(*netstack.TCPConn).SetWriteBuffer(64<<10)); err != nil {
			t.Error(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * patience))
	}
	for family, name := range families {
		t.Run(name+"/the kernel echoes", func(t *testing.T) {
			p := newPair(t, setup{})
			closed := p.smallBuffers()
			for i := range *echoes {
				served := p.inMachine("timeout 200 nc -l -p 7 -e cat")
				var c net.Conn
				p.want("the machine accepts a TCP connection", func() (ok bool) {
					var err error
					c, err = p.net.Dial("tcp", netip.AddrPortFrom(kernelAddrs[family], 7).String())
					return err == nil
				})
				shrink(t, c)
				go func() {
					_, _ = c.Write(b)
					_ = c.(*netstack.TCPConn).CloseWrite()
				}()
				time.Sleep(time.Second / 2) // until all windows are closed
				h := sha256.New()
				n, err := io.Copy(h, c)
				_ = c.Close()
				if err != nil || n != bulk || hex.EncodeToString(h.Sum(nil)) != digest {
					t.Fatalf("connection %d: %d of %d bytes came back, or other bytes than were sent, %v", i, n, bulk, err)
				}
				served()
			}
			if n := closed(); n == 0 {
				t.Error("the kernel closed no window, so the test shows nothing")
			}
		})
		t.Run(name+"/the kernel is echoed", func(t *testing.T) {
			p := newPair(t, setup{})
			closed := p.smallBuffers()
			l, err := p.net.Listen("tcp", netip.AddrPortFrom(ourAddrs[family], 7).String())
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			for i := range *echoes {
				// In the machine, one process sends, and another one begins to receive a second later, when all windows are
				// closed. The server closes the connection when it has echoed all data.
				sent := p.inMachine(`dd if=/dev/urandom of=/tmp/bulk bs=64k count=%d 2>/dev/null
printf '#!/bin/sh\ncat /tmp/bulk &\nsleep 1\nsha256sum >/tmp/got\n' >/tmp/client
chmod +x /tmp/client
timeout 200 nc %v 7 -e /tmp/client
sha256sum </tmp/bulk
cat /tmp/got
rm /tmp/bulk /tmp/got`, bulk>>16, ourAddrs[family])
				c, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				shrink(t, c)
				n, err := io.CopyN(struct{ io.Writer }{c}, struct{ io.Reader }{c}, bulk)
				_ = c.Close()
				digests := strings.Fields(sent())
				if err != nil || len(digests) != 4 || digests[0] != digests[2] {
					t.Fatalf("connection %d: we echoed %d of %d bytes, %v; the digests of the bytes sent and received are %q, want equal ones", i, n, bulk, err, digests)
				}
			}
			if n := closed(); n == 0 {
				t.Error("the kernel closed no window, so the test shows nothing")
			}
		})
	}
}

// smallBuffers gives the kernel's TCP buffers a fixed size until the test ends, and keeps the usual window scale. The returned
// function closed returns how often the kernel has closed a window since smallBuffers was called.
func (p *pair) smallBuffers() (closed func() int) {
	const read, write, moderate = "/proc/sys/net/ipv4/tcp_rmem", "/proc/sys/net/ipv4/tcp_wmem", "/proc/sys/net/ipv4/tcp_moderate_rcvbuf"
	was := strings.Split(strings.TrimSpace(p.sh("cat %s %s", read, write)), "\n")
	p.sh("echo 0 >%s\necho 4096 65536 6291456 >%s\necho 4096 65536 65536 >%s", moderate, read, write)
	p.t.Cleanup(func() { p.sh("echo 1 >%s\necho %s >%s\necho %s >%s", moderate, was[0], read, was[1], write) })
	before := p.closedWindows()
	return func() int { return p.closedWindows() - before }
}

// closedWindows returns how often the kernel has closed a window, which means that it announced a window of zero, since it booted.
func (p *pair) closedWindows() int {
	p.t.Helper()
	lines := strings.Split(p.sh("grep ^TcpExt: /proc/net/netstat"), "\n")
	names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	n, err := strconv.Atoi(values[slices.Index(names, "TCPToZeroWindowAdv")])
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}
