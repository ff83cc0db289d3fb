package netstack

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// quietChild is the environment variable that tells TestQuiet's child process which log to use: "quiet" means the log as this
// package changes it, "loud" means gVisor's original log.
const quietChild = "WIREGUARD_TEST_QUIET"

// TestQuiet runs a Net in a separate process while a peer sends unusual packets. It checks that the process writes nothing to
// standard error. That covers packages log and log/slog too, whose default loggers also write there.
func TestQuiet(t *testing.T) {
	if how := os.Getenv(quietChild); how != "" {
		worst(t, how)
		return
	}
	if runtime.GOOS == "js" || runtime.GOOS == "wasip1" {
		t.Skip("this test runs a child process, which WebAssembly cannot do")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := func(how string) (stdout, stderr string) {
		var out, errs bytes.Buffer
		c := exec.CommandContext(t.Context(), self, "-test.run=^TestQuiet$", "-test.timeout=2m")
		c.Env = append(os.Environ(), quietChild+"="+how)
		c.Stdout, c.Stderr = &out, &errs
		if err := c.Run(); err != nil {
			t.Fatalf("the child process with the %s log failed: %v\n%s\n%s", how, err, &out, &errs)
		}
		return out.String(), errs.String()
	}
	if _, stderr := run("loud"); !strings.Contains(stderr, "handleListenSegment") {
		t.Errorf("gVisor's own log has %q, want handleListenSegment; without such lines, the test proves nothing", stderr)
	}
	stdout, stderr := run("quiet")
	if stderr != "" {
		t.Errorf("the process wrote %q to standard error, want nothing", stderr)
	}
	// The test binary itself prints PASS, and the coverage if it was built with -cover.
	if first, _, _ := strings.Cut(stdout, "\n"); first != "PASS" {
		t.Errorf("the process wrote %q to standard output, want only the result of the test", stdout)
	}
}

// worst sends a Net the kinds of packets about which network stacks have written log lines.
func worst(t *testing.T, how string) {
	if how == "loud" {
		log.Log().Emitter = log.Log().Emitter.(quiet).next
	}
	n, h := byHand(t)
	for _, f := range handFlows {
		l, err := n.Listen("tcp", f[1].String())
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
		defer l.Close()
		u, err := n.ListenPacket("udp", f[1].String())
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
	}
	r := rand.New(rand.NewPCG(1, 2))
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		for _, f := range handFlows {
			for range 50 {
				own := netip.AddrPortFrom(f[0].Addr(), 1024+uint16(r.IntN(60000)))
				// The same SYN arrives several times at once, as it does after a WireGuard handshake that took seconds.
				syn := segment{from: own, to: f[1], seq: r.Uint32(), flags: flagSYN, window: 1000}.packet()
				h.write(t, syn, syn, syn)
				odd := segment{from: own, to: f[1], seq: r.Uint32(), ack: r.Uint32(), flags: uint8(r.Uint32()), window: uint16(r.Uint32()), payload: make([]byte, r.IntN(50))}
				odd.options = [][]byte{nil, {1, 1, 1, 1}, {2, 4, 0, 0}, {5, 200, 9, 9}, {3, 0, 0, 0}, {8, 10, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0}}[r.IntN(6)]
				h.write(t, odd.packet(), mangled(r, odd.packet()), fragment(odd.packet()))
				from := []netip.Addr{own.Addr(), f[1].Addr(), netip.IPv6Loopback(), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("224.0.0.1"), netip.IPv4Unspecified(), netip.MustParseAddr("ff02::1")}[r.IntN(8)]
				if from.Is4() == own.Addr().Is4() {
					odd.from = netip.AddrPortFrom(from, f[1].Port())
					h.write(t, odd.packet())
				}
			}
		}
		h.mu.Lock()
		h.sent = nil
		h.mu.Unlock()
	}
}

// mangled changes some bytes of an IP packet, and corrects its checksums half of the time.
func mangled(r *rand.Rand, p []byte) []byte {
	for range 1 + r.IntN(4) {
		p[r.IntN(len(p))] = uint8(r.Uint32())
	}
	if l3, ok := headerEnd(p); ok && r.IntN(2) == 0 && len(p) >= l3+packet.TCPHeader {
		mendSums(p, l3)
	}
	return p
}

// headerEnd returns the size of the IP header of p. ok is false if p is not an IP packet.
func headerEnd(p []byte) (l3 int, ok bool) {
	switch p[0] >> 4 {
	case 4:
		l3 = int(p[0]&15) * 4
		return l3, l3 >= packet.IP4Header && l3 <= len(p)
	case 6:
		return packet.IP6Header, len(p) >= packet.IP6Header
	}
	return 0, false
}

// TestQuietKeepsOtherLines checks that quiet passes on lines about other stacks, with the name of the source file that wrote them.
func TestQuietKeepsOtherLines(t *testing.T) {
	var b bytes.Buffer
	l := &log.BasicLogger{Level: log.Info, Emitter: quiet{log.GoogleEmitter{Writer: &log.Writer{Next: &b}}}}
	l.Warningf("a packet of nic=%d", NICID)
	l.Warningf("a packet of nic=%d", tcpip.NICID(1))
	l.Infof("a number: %d", int(NICID))
	if got := b.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "nic=1") || !strings.Contains(got, "a number") || strings.Count(got, "quiet_test.go:") != 2 {
		t.Errorf("the log has %q, want the line about nic=1 and the one about a number, both from quiet_test.go", got)
	}
}

// TestHandlerOnStack reads a datagram in a transport handler, as the documentation of Stack recommends.
func TestHandlerOnStack(t *testing.T) {
	a, b := pair(t)
	type datagram struct {
		port    uint16
		payload string
	}
	got := make(chan datagram, 1)
	b.Stack().SetTransportProtocolHandler(udp.ProtocolNumber, func(_ stack.TransportEndpointID, p *stack.PacketBuffer) bool {
		got <- datagram{header.UDP(p.TransportHeader().Slice()).SourcePort(), string(p.Data().AsRange().ToSlice())}
		return true
	})
	c, err := a.Dial("udp", netip.AddrPortFrom(b4, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	want := datagram{c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), "hello"}
	if d := <-got; d != want {
		t.Errorf("the handler got %+v, want %+v", d, want)
	}
}
