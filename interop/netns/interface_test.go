//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/netlab"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// A wg is a WireGuard interface of the daemon under test, and the host on which the interface and the daemon are.
type wg struct {
	*host
	*netlab.Daemon
	name string // the interface's name, unique among all hosts
	key  wireguard.PrivateKey
	port int
}

// defaultPort is the port of each interface, unless a test chooses another one.
const defaultPort = 51820

// newWG starts a daemon on the host, gives its interface a key, a port and the addresses, and brings it up.
func newWG(h *host, addresses string) *wg {
	h.t.Helper()
	return newWGAt(h, defaultPort, addresses)
}

// newWGAt does what newWG does, but with a port other than defaultPort.
func newWGAt(h *host, port int, addresses string) *wg {
	h.t.Helper()
	w := &wg{host: h, name: fmt.Sprintf("wg%d", serial.Add(1)), key: wireguard.NewPrivateKey(), port: port}
	w.launch()
	w.set("listen-port %d private-key /dev/stdin", w.port)
	w.addresses(w.name, addresses)
	w.up()
	return w
}

// up runs "ip link set up", and waits until the daemon has reacted. The kernel's own module reacts before the command returns. The
// daemon may react later, because it learns of the change from netlink. The daemon first opens its port and then starts to send and
// receive packets. A change of the configuration waits until both are done, so up makes such a change.
func (w *wg) up() {
	w.t.Helper()
	w.run("ip link set up dev %s", w.name)
	testkit.Eventually(w.t, w.name+" is up and listens", func() bool { return w.bound(w.port) })
	w.set("listen-port %d", w.port)
	w.await6(w.name)
}

// down runs "ip link set down", and waits until the daemon has closed its port.
func (w *wg) down() {
	w.t.Helper()
	w.run("ip link set down dev %s", w.name)
	testkit.Eventually(w.t, w.name+" is down and has closed its port", func() bool { return !w.bound(w.port) })
}

// launch starts the daemon without a configuration. It keeps the kernel from adding a link-local address to the interface, so
// that only the test's packets pass through the interface. The kernel does not add such an address to an interface of its own
// module either.
func (w *wg) launch() {
	w.t.Helper()
	d, err := w.StartDaemon(program(w.t), w.name)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Daemon = d
	w.t.Cleanup(func() {
		if strings.Contains(d.Log(), "DATA RACE") {
			w.t.Errorf("%s: the daemon has a data race", w.name)
		}
		if w.t.Failed() {
			out, err := w.Run("wg show " + w.name)
			w.t.Logf("%s on %s: %v\n%s%s", w.name, w.Name, err, out, lastLines(d.Log()))
		}
		d.Kill()
	})
	w.run("ip link set %s addrgenmode none", w.name)
}

// lastLines returns about the last eight lines of a log.
func lastLines(log string) string {
	lines := strings.SplitAfter(log, "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "")
}

// set runs "wg set" for this interface. The arguments may name the file /dev/stdin, which contains the interface's private key.
func (w *wg) set(format string, args ...any) {
	w.t.Helper()
	w.feed(w.key.Text(), "wg set "+w.name+" "+format, args...)
}

// peer adds or changes a peer.
func (w *wg) peer(p *wg, format string, args ...any) {
	w.t.Helper()
	w.set("peer %s "+format, append([]any{p.key.Public()}, args...)...)
}

// A status is a peer in the output of "wg show dump".
type status struct {
	endpoint  string
	allowed   string
	handshake int64 // Unix time; 0 means never
	transfer
}

// A transfer holds the bytes of the messages that were received from a peer and sent to it.
type transfer struct{ rx, tx int64 }

// status returns the status of a peer.
func (w *wg) status(p *wg) status {
	w.t.Helper()
	for line := range strings.Lines(w.run("wg show %s dump", w.name)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) != 8 || f[0] != p.key.Public().String() {
			continue
		}
		var n [3]int64
		for i := range n {
			n[i], _ = strconv.ParseInt(f[4+i], 10, 64)
		}
		return status{f[2], f[3], n[0], transfer{n[1], n[2]}}
	}
	w.t.Fatalf("%s: wg show does not know the peer %v", w.name, p.key.Public())
	return status{}
}

// wantEndpoint checks that the interface has the endpoint want for the peer p. The error message contains why.
func (w *wg) wantEndpoint(p *wg, want, why string) {
	w.t.Helper()
	if got := w.status(p).endpoint; got != want {
		w.t.Errorf("%s: the peer's endpoint is %s, want %s: %s", w.name, got, want, why)
	}
}

// A traffic holds the counters of "ip -s link".
type traffic struct{ rxPackets, rxBytes, txPackets, txBytes int64 }

// traffic returns the counters of the interface.
func (w *wg) traffic() traffic {
	w.t.Helper()
	var c traffic
	lines := strings.Split(w.run("ip -s link show dev %s", w.name), "\n")
	for i, line := range lines[:len(lines)-1] {
		next := lines[i+1]
		switch {
		case strings.Contains(line, "RX:"):
			fmt.Sscan(next, &c.rxBytes, &c.rxPackets)
		case strings.Contains(line, "TX:"):
			fmt.Sscan(next, &c.txBytes, &c.txPackets)
		}
	}
	return c
}

// A pair is the WireGuard interfaces of two hosts, a and b, that a cable connects:
//
//	host a                                        host b
//	v0 192.0.2.1/24, 2001:db8::1/64 ───────────── v0 192.0.2.2/24, 2001:db8::2/64
//	wg 10.0.0.1/24, fd00::1/64 ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ wg 10.0.0.2/24, fd00::2/64
//
// Each interface has the other one as its peer, with the two inner addresses as allowed IPs. Neither interface has the other one's
// endpoint yet.
type pair struct{ a, b *wg }

const (
	outerA, outerB = "192.0.2.1/24 2001:db8::1/64", "192.0.2.2/24 2001:db8::2/64"
	innerA, innerB = "10.0.0.1/24 fd00::1/64", "10.0.0.2/24 fd00::2/64"
)

// addr parses an address.
func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// Addresses of a pair.
var (
	outerA4          = addr("192.0.2.1")
	outerB4, outerB6 = addr("192.0.2.2"), addr("2001:db8::2")
	innerA4, innerA6 = addr("10.0.0.1"), addr("fd00::1")
	innerB4, innerB6 = addr("10.0.0.2"), addr("fd00::2")
)

func newPair(t *testing.T) pair {
	t.Helper()
	a, b := newHost(t), newHost(t)
	a.cable("v0", outerA, b, "v0", outerB)
	p := pair{newWG(a, innerA), newWG(b, innerB)}
	p.introduce()
	return p
}

// introduce makes the two interfaces peers of each other.
func (p pair) introduce() {
	p.a.t.Helper()
	p.a.peer(p.b, "allowed-ips %v/32,%v/128", innerB4, innerB6)
	p.b.peer(p.a, "allowed-ips %v/32,%v/128", innerA4, innerA6)
}

// meet sets the endpoint of b in a's configuration. When the first packet of a has arrived, b has the endpoint of a too.
func (p pair) meet(endpoint netip.Addr) {
	p.a.t.Helper()
	p.a.peer(p.b, "endpoint %v", netip.AddrPortFrom(endpoint, defaultPort))
}
