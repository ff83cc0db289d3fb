package udp

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"golang.org/x/sys/unix"
)

// TestSourceFollowsTheRoute checks that a source is kept if routes change but the route to the peer still uses the same
// interface. If the route changes to another interface, the source is dropped once. The source of the next train is kept again.
func TestSourceFollowsTheRoute(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	b := Bind{}
	s, err := b.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := s.(*Socket).paths[ipv4].(*linuxPath)
	r := p.routes
	if r == nil {
		t.Skip("needs netlink in a namespace")
	}
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	to := loopback(ipv4)
	p4 := pair{to.As4(), to.As4(), 9}
	check := func(why string, kept bool) {
		t.Helper()
		e := wireguard.EndpointOf(netip.AddrPortFrom(to, 9))
		e.Source = to
		if r.check(&e, p.raw); e.Source.IsValid() != kept {
			t.Errorf("%s: check kept the source: %v, want %v", why, !kept, kept)
		}
		if got := r.now[p4].ifindex; got != uint32(lo.Index) {
			t.Errorf("%s: the stored interface of the route is %d, want %d", why, got, lo.Index)
		}
	}
	check("first train to the peer", true)
	noticed(t, r, "a new route", func() {
		changeAddress(t, unix.RTM_NEWADDR, netip.MustParseAddr("198.51.100.1")) // this adds a route too
	})
	check("after a change of another route", true)
	for range 3 {
		elsewhere(r, p4)
		check("after a move of the route to another interface", false)
		check("after the peer has used the new source", true)
	}
	if got, ok := outgoing(r.ask, pair{to: [4]byte{203, 0, 113, 1}}, 0); got != 0 || !ok {
		t.Errorf("an address without a route: interface %d, system answered: %v; want 0 and true", got, ok)
	}
	for range 2 {
		s.Close()
		check("after Close", true)
	}
}

// noticed calls the function do, which must cause a change of routes, and waits until r has counted the change.
func noticed(t *testing.T, r *routes, what string, do func()) {
	t.Helper()
	before := r.changes.Load()
	do()
	testkit.Eventually(t, "routes counts a change after: "+what, func() bool { return r.changes.Load() != before })
	time.Sleep(20 * time.Millisecond) // more messages may follow
}

// ip runs the command-line tool ip.
func ip(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

// link makes a pair of connected interfaces. The first interface has the given name and address. The second has no address.
func link(t *testing.T, name, address string) {
	t.Helper()
	if out, err := exec.Command("ip", "link", "add", name, "type", "veth", "peer", name+"-far").CombinedOutput(); err != nil {
		t.Skipf("needs the tool ip and links of type veth: %v: %s", err, out)
	}
	ip(t, "address add "+address+" dev "+name)
	ip(t, "link set "+name+"-far up")
	ip(t, "link set "+name+" up")
}

// watched opens a socket. It returns the socket's value of type routes, and a function that checks whether this value keeps or
// drops a given source of packets to a given destination.
func watched(t *testing.T) (r *routes, check func(why, to, source string, kept bool)) {
	t.Helper()
	p := variants[0].listen(t).paths[ipv4].(*linuxPath)
	if p.routes == nil {
		t.Skip("needs netlink in a namespace")
	}
	return p.routes, func(why, to, source string, kept bool) {
		t.Helper()
		e := wireguard.EndpointOf(netip.AddrPortFrom(netip.MustParseAddr(to), 9))
		e.Source = netip.MustParseAddr(source)
		if p.routes.check(&e, p.raw); e.Source.IsValid() != kept {
			t.Errorf("%s: check kept the source: %v, want %v", why, !kept, kept)
		}
	}
}

// TestSourceGoesWithItsLink checks that a source is dropped when the link of its address goes down, and when the address is
// removed. In both cases, the system sends no message about the IPv4 routes that disappear.
func TestSourceGoesWithItsLink(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	link(t, "d0", "198.51.100.1/24")
	r, check := watched(t)
	const to, source = "198.51.100.9", "198.51.100.1"
	check("link and address exist", to, source, true)
	noticed(t, r, "link down", func() { ip(t, "link set d0 down") })
	check("the link of the address is down", to, source, false)
	noticed(t, r, "link up", func() { ip(t, "link set d0 up") })
	check("the link is up again, which counts as a new route", to, source, false)
	check("after the peer has used the source again", to, source, true)
	noticed(t, r, "address gone", func() { ip(t, "address del 198.51.100.1/24 dev d0") })
	check("the host has lost the address", to, source, false)
	check("a peer that never had a route", "203.0.113.1", "127.0.0.1", true)
}

// TestSourceHasItsOwnRoutes checks that routes asks for the route of packets with the given source, since a routing rule may
// choose the route by the source.
func TestSourceHasItsOwnRoutes(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	link(t, "d0", "198.51.100.1/24")
	link(t, "d1", "192.0.2.1/24")
	ip(t, "route add default dev d0 table 100")
	ip(t, "rule add from 198.51.100.1 table 100")
	r, check := watched(t)
	const to = "203.0.113.1"
	check("before any change", to, "198.51.100.1", true)
	noticed(t, r, "default route", func() { ip(t, "route add default dev d1") })
	check("the new default route is not for this source", to, "198.51.100.1", true)
	check("this source uses the new default route", to, "192.0.2.1", true)
	noticed(t, r, "own route", func() { ip(t, "route del default table 100") })
	check("this source uses the default route now", to, "198.51.100.1", false)
	check("the route of this source has not changed", to, "192.0.2.1", true)
}

// TestRoutesAreBounded checks that the number of stored pairs and the number of questions to the system stay limited, however
// many addresses there are. It also checks that routes keeps the way (the stored interface) of a peer in use.
func TestRoutesAreBounded(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	const strangers = 100_000
	p := variants[0].listen(t).paths[ipv4].(*linuxPath)
	r := p.routes
	if r == nil {
		t.Skip("needs netlink in a namespace")
	}
	lo := netip.MustParseAddr("127.0.0.1")
	ask := func(to [4]byte) {
		e := wireguard.EndpointOf(netip.AddrPortFrom(netip.AddrFrom4(to), 9))
		e.Source = lo
		if r.check(&e, p.raw); e.Source != lo {
			t.Fatal("check dropped the source of a pair whose interface never changed")
		}
	}
	stranger := func(i int) [4]byte { return [4]byte{127, byte(1 + i>>16), byte(i >> 8), byte(i)} }
	start := time.Now()
	for i := range strangers {
		ask(stranger(i))
	}
	seconds := int(time.Since(start)/time.Second) + 1
	if n := len(r.now) + len(r.old); n > (seconds+1)*maxQuestions {
		t.Errorf("%d questions to the system in %d s, want at most %d per second", n, seconds, maxQuestions)
	}
	r.now, r.old = nil, nil
	peer := pair{[4]byte{127, 0, 0, 2}, lo.As4(), 9}
	for i := range 2*maxWays + maxWays/2 {
		if r.asked = 0; i%1000 == 0 {
			ask(peer.to)
			if _, ok := r.now[peer]; !ok {
				t.Fatalf("the stored interface of the peer is lost after %d strangers", i)
			}
			known := r.now[peer]
			known.ifindex = 1 << 20
			r.now[peer] = known // the system never returns this index, so an entry with this index is a kept one
		}
		ask(stranger(i))
	}
	if n := max(len(r.now), len(r.old)); n > maxWays || n == 0 {
		t.Errorf("one map holds %d ways, want between 1 and %d", n, maxWays)
	}
	if w, _ := r.find(peer); w.ifindex != 1<<20 {
		t.Error("the stored interface of the peer in use was dropped")
	}
}

// TestRouteQuestionsAreFair checks that the source of a known peer is dropped at once when its route changes, even while an
// attacker with many addresses causes as many questions about new pairs as are allowed per second.
func TestRouteQuestionsAreFair(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	link(t, "d0", "198.51.100.1/24")
	link(t, "d1", "192.0.2.1/24")
	ip(t, "route add 203.0.113.0/24 dev d0")
	r, check := watched(t)
	check("first train to the peer", "203.0.113.1", "198.51.100.1", true)
	party := 0
	ask := func() {
		to := netip.AddrFrom4([4]byte{203, byte(1 + party>>16), byte(party >> 8), byte(party)})
		check("an address of the attacker", to.String(), "198.51.100.1", true)
		party++
	}
	for range 2 {
		noticed(t, r, "the route", func() { ip(t, "route replace 203.0.113.0/24 dev d1") })
		for r.asked < maxQuestions {
			ask()
		}
		check("the peer's route moved to d1", "203.0.113.1", "198.51.100.1", false)
		check("after the peer has used the source again", "203.0.113.1", "198.51.100.1", true)
		noticed(t, r, "the route", func() { ip(t, "route replace 203.0.113.0/24 dev d0") })
		for r.asked < maxQuestions {
			ask()
		}
		check("the peer's route moved back to d0", "203.0.113.1", "198.51.100.1", false)
		check("after the peer has used the source again", "203.0.113.1", "198.51.100.1", true)
	}
}

// TestNoQuestionForCookieReply checks that Send does not ask the system for the route of a cookie reply. The receiver of a cookie
// reply is not authenticated, so an attacker may have forged its address.
func TestNoQuestionForCookieReply(t *testing.T) {
	x, y := variants[0].pair(t, ipv4)
	r := x.paths[ipv4].(*linuxPath).routes
	if r == nil {
		t.Skip("needs netlink")
	}
	to := y.at(ipv4)
	to.Source = loopback(ipv4)
	reply := trainOf(1, 64, 64, to)
	reply.Data[0] = 3
	x.send(reply)
	y.receive(ipv4, 1)
	if len(r.now) != 0 {
		t.Error("Send asked the system for the route of a cookie reply")
	}
	reply.Data[0] = 4
	x.send(reply)
	y.receive(ipv4, 1)
	if len(r.now) != 1 {
		t.Error("Send did not ask the system for the route of a data message")
	}
}

// TestListeningGoesOn checks that listen continues after an unknown error, and counts a change for each such error.
func TestListeningGoesOn(t *testing.T) {
	odd, err := os.Open("/") // reading a directory fails
	if err != nil {
		t.Fatal(err)
	}
	r := &routes{events: odd, ask: -1}
	ended := make(chan struct{})
	go func() {
		r.listen()
		close(ended)
	}()
	for range 3 {
		noticed(t, r, "a read error", func() {})
	}
	r.Close()
	testkit.Next(t, ended, "listen returns after Close")
}
