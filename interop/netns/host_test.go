//go:build linux

package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/netlab"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// serial makes the names of hosts and WireGuard interfaces unique.
var serial atomic.Int64

// A host is a network namespace that exists until its test ends. If a command in the namespace fails, the test fails.
type host struct {
	*netlab.Host
	t *testing.T
}

// newHost makes a host. It skips the test if the system cannot make one.
func newHost(t *testing.T) *host {
	t.Helper()
	program(t)
	h, err := netlab.NewHost(fmt.Sprintf("h%d", serial.Add(1)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return &host{h, t}
}

// run runs a command line and returns its output. If the command fails, the test fails.
func (h *host) run(format string, args ...any) string {
	h.t.Helper()
	out, err := h.Run(fmt.Sprintf(format, args...))
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// feed does what run does, and passes input to the command's standard input.
func (h *host) feed(input, format string, args ...any) string {
	h.t.Helper()
	out, err := h.RunWith(input, fmt.Sprintf(format, args...))
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// fails runs a command line and returns its output. If the command succeeds, the test fails.
func (h *host) fails(why, format string, args ...any) string {
	h.t.Helper()
	line := fmt.Sprintf(format, args...)
	out, err := h.Run(line)
	if err == nil {
		h.t.Fatalf("%s: %s: the command succeeds, want a failure: %s\n%s", h.Name, line, why, out)
	}
	return out
}

// sysctl sets values below /proc/sys, as in "net/ipv4/ip_forward=1".
func (h *host) sysctl(settings ...string) {
	h.t.Helper()
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		if err := h.Sysctl(name, value); err != nil {
			h.t.Fatal(err)
		}
	}
}

// cable connects h with g. It makes an interface on each host, with the given name and addresses.
func (h *host) cable(name string, addresses string, g *host, nameThere, addressesThere string) {
	h.t.Helper()
	if err := netlab.Join(h.Host, name, g.Host, nameThere); err != nil {
		h.t.Fatal(err)
	}
	h.addresses(name, addresses)
	g.addresses(nameThere, addressesThere)
}

// addresses adds addresses, separated by spaces, to an interface. It turns off duplicate address detection, because the kernel
// would otherwise delay the use of an IPv6 address. If the interface is up, addresses returns when the kernel uses the addresses.
func (h *host) addresses(name, addresses string) {
	h.t.Helper()
	for _, a := range strings.Fields(addresses) {
		nodad := ""
		if strings.Contains(a, ":") {
			nodad = "nodad"
		}
		h.run("ip address add %s dev %s %s", a, name, nodad)
	}
	if h.run("ip link show dev %s up", name) != "" {
		h.await6(name)
	}
}

// await6 waits until the table local has a route for each IPv6 address of an interface that is up. On a busy host, pings to an
// address were lost right after the command that added it or set the interface up.
func (h *host) await6(name string) {
	h.t.Helper()
	testkit.Eventually(h.t, name+" has a local route for each IPv6 address", func() bool {
		routes := h.run("ip -6 route show table local type local dev %s", name)
		return strings.Count(routes, "\n") >= strings.Count(h.run("ip -6 -oneline address show dev %s", name), " inet6 ")
	})
}

// nft adds rules to the table t, one per line. That table has the chains in, forward and out for packets to, through and from the
// host. The chain early runs before connection tracking, the chain nat is for masquerading, and the chain late runs after nat.
func (h *host) nft(rules ...string) {
	h.t.Helper()
	h.feed(`
add table inet t
add chain inet t early { type filter hook prerouting priority -300; }
add chain inet t in { type filter hook input priority 0; }
add chain inet t forward { type filter hook forward priority 0; }
add chain inet t out { type filter hook output priority 0; }
add chain inet t nat { type nat hook postrouting priority 100; }
add chain inet t late { type filter hook postrouting priority 300; }
`+strings.Join(rules, "\n")+"\n", "nft -f -")
}

var counted = regexp.MustCompile(`counter packets (\d+) bytes \d+ comment "(\w+)"`)

// hits returns how many packets the nftables rule with the given comment has counted.
func (h *host) hits(comment string) int {
	h.t.Helper()
	for _, m := range counted.FindAllStringSubmatch(h.run("nft list table inet t"), -1) {
		if m[2] == comment {
			n, _ := strconv.Atoi(m[1])
			return n
		}
	}
	h.t.Fatalf("%s: no nftables rule has the comment %s", h.Name, comment)
	return 0
}

// ping sends n echo requests, each after the reply to the previous one. If a reply does not arrive within 3 s, the test fails.
func (h *host) ping(to netip.Addr, n int, options ...string) {
	h.t.Helper()
	for i := range n {
		if out, err := h.tryPing(to, 3*time.Second, options...); err != nil {
			h.t.Fatalf("%s: ping %d of %d to %v: %v\n%s", h.Name, i+1, n, to, err, out)
		}
	}
}

// noPing sends one echo request, and returns the output of ping. If a reply arrives within 0.4 s, the test fails. why says in the
// error message why no reply is expected.
func (h *host) noPing(why string, to netip.Addr, options ...string) string {
	h.t.Helper()
	out, err := h.tryPing(to, 400*time.Millisecond, options...)
	if err == nil {
		h.t.Fatalf("%s: %v answers a ping, want no answer: %s", h.Name, to, why)
	}
	return out
}

// reaches sends one echo request, and reports whether a reply arrives within 0.2 s.
func (h *host) reaches(to netip.Addr) bool {
	_, err := h.tryPing(to, 200*time.Millisecond)
	return err == nil
}

// tryPing runs ping(8), and fails if no reply arrives within the duration wait. It sends only one packet: with several packets,
// ping would wait for the last reply only twice as long as the slowest reply has taken.
func (h *host) tryPing(to netip.Addr, wait time.Duration, options ...string) (string, error) {
	return h.Run(fmt.Sprintf("ping -n -c 1 -W %.1f %s %v", wait.Seconds(), strings.Join(options, " "), to))
}

// bound reports whether a UDP socket uses the port.
func (h *host) bound(port int) bool {
	h.t.Helper()
	bound, err := h.Bound("udp", port)
	if err != nil {
		h.t.Fatal(err)
	}
	return bound
}

// exists reports whether a file exists.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// sendUDP sends all datagrams from one socket. With one socket per datagram, opening the next socket would sometimes fail with
// "address already in use". The reason is that another test may be starting a process, which has a copy of the previous socket
// until it calls exec.
func (h *host) sendUDP(from, to string, datagrams ...[]byte) {
	h.t.Helper()
	err := h.Do(func() error {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))}
		c, err := d.Dial("udp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		for _, d := range datagrams {
			if _, err := c.Write(d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
}
