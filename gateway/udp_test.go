package gateway_test

import (
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard/gateway"
)

// TestUDPMapping checks REQ-1 of RFC 4787: all datagrams of one UDP socket behind a peer leave through one socket of the host,
// whatever their destinations. Only addresses to which the peer has sent may answer, but from any port.
func TestUDPMapping(t *testing.T) {
	w := newWorld(t, gateway.Config{Policy: toLoopback})
	a, b := host(t, "127.0.0.1:0"), host(t, "127.0.0.1:0")
	c := w.socket(t, 0)
	send(t, c, "to a", netip.AddrPortFrom(far, portOf(a)))
	send(t, c, "to b", netip.AddrPortFrom(distant, portOf(b)))
	text, mapped := receive(t, a)
	if text != "to a" {
		t.Errorf("a received %q, want the datagram to a", text)
	}
	if _, again := receive(t, b); again != mapped {
		t.Errorf("the second destination received from %v, want %v like the first", again, mapped)
	}
	if runtime.GOOS == "linux" { // all of 127.0.0.0/8 is local
		stranger := host(t, "127.0.0.2:0")
		send(t, stranger, "unasked", mapped)
		eventually(t, "the gateway has dropped the stranger's datagram", func() bool { return w.Stats()[w.keys[0]].Dropped == 1 })
	}
	send(t, a, "from a", mapped)
	send(t, b, "from b", mapped)
	froms := make(map[string]netip.AddrPort)
	for range 2 {
		text, from := receive(t, c)
		froms[text] = from
	}
	if froms["from a"] != netip.AddrPortFrom(far, portOf(a)) || froms["from b"] != netip.AddrPortFrom(distant, portOf(b)) {
		t.Errorf("the peer received %v, want one datagram from a and one from b", froms)
	}
	other := w.socket(t, 1)
	send(t, other, "to a", netip.AddrPortFrom(far, portOf(a)))
	if _, from := receive(t, a); from == mapped {
		t.Errorf("two sockets have the same mapping %v", mapped)
	}
}

// TestUDPLarge checks that datagrams of 60,000 bytes pass in both directions.
func TestUDPLarge(t *testing.T) {
	w := newWorld(t, gateway.Config{Policy: toLoopback})
	a, c := host(t, "127.0.0.1:0"), w.socket(t, 0)
	large := strings.Repeat("x", 60_000)
	send(t, c, large, netip.AddrPortFrom(far, portOf(a)))
	text, mapped := receive(t, a)
	if text != large {
		t.Errorf("the host received %d bytes, want %d", len(text), len(large))
	}
	send(t, a, large, mapped)
	if text, _ := receive(t, c); text != large {
		t.Errorf("the peer received %d bytes, want %d", len(text), len(large))
	}
}

// TestUDPSlowPolicy checks that a policy that takes long to decide about one destination does not delay the answers from
// another destination.
func TestUDPSlowPolicy(t *testing.T) {
	asked, release := make(chan bool, 1), make(chan bool)
	w := newWorld(t, gateway.Config{Policy: func(r gateway.Request) gateway.Verdict {
		if r.Destination.Addr() == distant {
			asked <- true
			<-release
		}
		return toLoopback(r)
	}})
	defer close(release)
	a, c := host(t, "127.0.0.1:0"), w.socket(t, 0)
	send(t, c, "to a", netip.AddrPortFrom(far, portOf(a)))
	_, mapped := receive(t, a)
	send(t, c, "undecided", netip.AddrPortFrom(distant, portOf(a)))
	<-asked
	send(t, a, "from a", mapped)
	if text, _ := receive(t, c); text != "from a" {
		t.Errorf("the peer received %q while the policy was undecided, want the answer from a", text)
	}
}

// TestUDPLimits checks that datagrams beyond the rate are dropped in each direction, and that a used-up quota ends the flow.
func TestUDPLimits(t *testing.T) {
	large := strings.Repeat("x", 60_000) // passes at once, and uses up the tokens of 6 s
	for name, l := range map[string]gateway.Limits{"from the peer": {FromPeer: 10_000}, "to the peer": {ToPeer: 10_000}} {
		w := newWorld(t, gateway.Config{Policy: toLoopback, Limits: l})
		a, c := host(t, "127.0.0.1:0"), w.socket(t, 0)
		to := netip.AddrPortFrom(far, portOf(a))
		send(t, c, large, to)
		_, mapped := receive(t, a)
		if l.ToPeer > 0 {
			send(t, a, large, mapped)
			receive(t, c)
			send(t, a, "late", mapped)
		} else {
			send(t, c, "late", to)
		}
		eventually(t, "the gateway has dropped a datagram "+name, func() bool { return w.Stats()[w.keys[0]].Dropped == 1 })
		w.SetLimits(w.keys[0], gateway.Limits{Quota: 1})
		send(t, c, "spent", to)
		eventually(t, "the flow ends after its quota is used up", func() bool { return w.Stats()[w.keys[0]].Flows == 0 })
	}
}
