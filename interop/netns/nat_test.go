//go:build linux

package netns

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// TestNAT puts a router with masquerading between a and b. The router forgets a mapping after two seconds. While a sends a
// persistent keepalive every second, b can always reach a. Without the keepalive, b can reach a only while the mapping exists.
// When a sends, the router creates a mapping again.
//
//	a ══ v0 192.168.1.2 ── lan 192.168.1.1 router wan 198.51.100.1 ── v0 198.51.100.2 ══ b
func TestNAT(t *testing.T) {
	t.Parallel()
	a, r, b := newHost(t), newHost(t), newHost(t)
	a.cable("v0", "192.168.1.2/24", r, "lan", "192.168.1.1/24")
	r.cable("wan", "198.51.100.1/24", b, "v0", "198.51.100.2/24")
	a.run("ip route add default via 192.168.1.1")
	r.sysctl("net/ipv4/ip_forward=1")
	r.nft("add rule inet t nat oifname wan masquerade", "add rule inet t in iifname wan drop")
	r.sysctl("net/netfilter/nf_conntrack_udp_timeout=2", "net/netfilter/nf_conntrack_udp_timeout_stream=2")

	p := pair{newWG(a, innerA), newWG(b, innerB)}
	p.introduce()
	p.a.peer(p.b, "persistent-keepalive 1 endpoint 198.51.100.2:%d", defaultPort)
	p.a.ping(innerB4, 3)
	p.b.wantEndpoint(p.a, fmt.Sprintf("198.51.100.1:%d", defaultPort), "a is behind the router")
	time.Sleep(3 * time.Second)
	p.b.ping(innerA4, 3)

	p.a.peer(p.b, "persistent-keepalive off")
	p.b.ping(innerA6, 1) // a answers, so it need not send a passive keepalive later
	testkit.Eventually(t, "the mapping is gone", func() bool { return !strings.Contains(r.mappings(), "sport=51820") })
	p.b.noPing("the router has forgotten a", innerA4)
	p.a.ping(innerB4, 3)
	p.b.ping(innerA4, 3)
}

// mappings returns the host's table of connection tracking as text.
func (h *host) mappings() string {
	h.t.Helper()
	var text []byte
	err := h.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/nf_conntrack")
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return string(text)
}
