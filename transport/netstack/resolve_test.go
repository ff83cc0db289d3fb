package netstack

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// A nameServer answers for the zone "test".
type nameServer struct {
	udp, tcp atomic.Int64 // questions
	mute     atomic.Bool  // answers nothing over UDP
}

func serveDNS(t testing.TB, n *Net) *nameServer {
	t.Helper()
	s := new(nameServer)
	u, err := n.ListenUDP(netip.AddrPortFrom(netip.Addr{}, 53))
	if err != nil {
		t.Fatal(err)
	}
	l, err := n.ListenTCP(netip.AddrPortFrom(netip.Addr{}, 53))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = u.Close(), l.Close() })
	go s.serveUDP(u)
	go s.serveTCP(l)
	return s
}

func (s *nameServer) serveUDP(c *UDPConn) {
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		s.udp.Add(1)
		if !s.mute.Load() {
			_, _ = c.WriteToUDPAddrPort(answer(b[:n], 1232), from)
		}
	}
}

func (s *nameServer) serveTCP(l *TCPListener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.tcp.Add(1)
		go func() {
			defer c.Close()
			var size [2]byte
			if _, err := io.ReadFull(c, size[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			a := answer(b, 65535)
			_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
		}()
	}
}

var longTexts = func() (texts []string) {
	for range 20 {
		texts = append(texts, strings.Repeat("long ", 40))
	}
	return texts
}()

// answer is the answer to the question q, with nothing in it but the truncation flag if it is longer than limit.
func answer(q []byte, limit int) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(q); err != nil {
		return nil
	}
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	add := func(b dnsmessage.ResourceBody) {
		h := dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60}
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: b})
	}
	has4, has6 := false, false
	switch m.Questions[0].Name.String() {
	case "both.test.":
		has4, has6 = true, true
	case "four.test.":
		has4 = true
	case "two.test.":
		if m.Questions[0].Type == dnsmessage.TypeA {
			add(&dnsmessage.AResource{A: netip.MustParseAddr("10.8.0.9").As4()})
		}
		has4 = true
	case "text.test.":
		add(&dnsmessage.TXTResource{TXT: []string{"some text"}})
	case "long.test.":
		add(&dnsmessage.TXTResource{TXT: longTexts})
	case "_web._tcp.test.":
		add(&dnsmessage.SRVResource{Priority: 1, Weight: 2, Port: 80, Target: dnsmessage.MustNewName("both.test.")})
	default:
		m.RCode = dnsmessage.RCodeNameError
	}
	switch m.Questions[0].Type {
	case dnsmessage.TypeA:
		if has4 {
			add(&dnsmessage.AResource{A: b4.As4()})
		}
	case dnsmessage.TypeAAAA:
		if has6 {
			add(&dnsmessage.AAAAResource{AAAA: b6.As16()})
		}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	if len(b) > limit {
		m.Answers, m.Truncated = nil, true
		b, _ = m.Pack()
	}
	return b
}

func TestResolver(t *testing.T) {
	a, b := pair(t)
	s := serveDNS(t, b)
	r := a.Resolver()

	addrs, err := r.LookupHost(t.Context(), "both.test")
	slices.Sort(addrs)
	if want := []string{"10.8.0.2", "fd08::2"}; !slices.Equal(addrs, want) || err != nil {
		t.Errorf("A and AAAA: %v, %v; want %v", addrs, err, want)
	}
	texts, err := r.LookupTXT(t.Context(), "text.test")
	if want := []string{"some text"}; !slices.Equal(texts, want) || err != nil {
		t.Errorf("TXT: %v, %v; want %v", texts, err, want)
	}
	_, srvs, err := r.LookupSRV(t.Context(), "web", "tcp", "test")
	if err != nil || len(srvs) != 1 || *srvs[0] != (net.SRV{Target: "both.test.", Port: 80, Priority: 1, Weight: 2}) {
		t.Errorf("SRV: %v, %v", srvs, err)
	}
	if s.tcp.Load() != 0 {
		t.Error("short answers took TCP")
	}
	texts, err = r.LookupTXT(t.Context(), "long.test")
	if err != nil || strings.Join(texts, "") != strings.Join(longTexts, "") {
		t.Errorf("TXT over TCP: %d texts, %v", len(texts), err)
	}
	if s.tcp.Load() != 1 {
		t.Errorf("a truncated answer led to %d questions over TCP, want 1", s.tcp.Load())
	}
	_, err = r.LookupHost(t.Context(), "nowhere.test")
	var dns *net.DNSError
	if !errors.As(err, &dns) || !dns.IsNotFound {
		t.Errorf("a name that does not exist: %v", err)
	}
}

func TestDialName(t *testing.T) {
	a, b := pair(t)
	s := serveDNS(t, b)
	echo(t, b, ":80")
	c, err := a.Dial("tcp", "four.test:http")
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c)
	_ = c.Close()
	asked := s.udp.Load()
	_, err = a.Dial("tcp", "nowhere.test:80")
	var dns *net.DNSError
	if !errors.As(err, &dns) || !dns.IsNotFound {
		t.Errorf("dial of a name that does not exist: %v", err)
	}
	// One for each family: the search list of this system must not be tried.
	if n := s.udp.Load() - asked; n != 2 {
		t.Errorf("it took %d questions, want 2", n)
	}
	if _, err := a.Dial("tcp6", "four.test:80"); err == nil {
		t.Error("dialed over IPv6 to a name that has no such address")
	}
}

// TestServers asks the second name server when the first does not answer, and from then on at once.
func TestServers(t *testing.T) {
	_, b := pair(t)
	s := serveDNS(t, b)
	n, err := New(Config{Addresses: []netip.Addr{a4}, DNS: []netip.Addr{b6, netip.MustParseAddr("10.8.0.77"), b4}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	b.link.attach(&wire{to: n})
	var lost atomic.Int64
	n.link.attach(&wire{to: b, tap: func(p []byte) bool {
		if p[19] != 77 {
			return false
		}
		lost.Add(1)
		// What a device says of an address that nobody has.
		go func() { _, _ = n.WritePackets([][]byte{portUnreachable(p)}) }()
		return true
	}})
	for range 3 {
		if addrs, err := n.Resolver().LookupNetIP(t.Context(), "ip4", "both.test."); err != nil || len(addrs) != 1 {
			t.Fatalf("lookup: %v, %v", addrs, err)
		}
	}
	if lost.Load() != 1 || s.udp.Load() != 3 {
		t.Errorf("%d questions to the server that does not answer and %d to the one that does, want 1 and 3", lost.Load(), s.udp.Load())
	}
}

func TestNoServers(t *testing.T) {
	n, err := New(Config{Addresses: []netip.Addr{a4}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.Dial("tcp", "both.test:80"); err == nil || !strings.Contains(err.Error(), "Config.DNS") {
		t.Errorf("dial of a name without a name server: %v; want what to do about it", err)
	}
}

func TestRank(t *testing.T) {
	global, local := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fd00::1")
	for _, x := range []struct {
		own, to netip.Addr
		before  bool // IPv6 before IPv4
	}{
		{global, netip.MustParseAddr("2001:db8::2"), true},
		{local, netip.MustParseAddr("2001:db8::2"), false},
		{local, netip.MustParseAddr("fd00::2"), true},
		{global, netip.MustParseAddr("fd00::2"), false},
	} {
		n := &Net{addrs: []netip.Addr{a4, x.own}}
		if got := n.rank(x.to) < n.rank(b4); got != x.before {
			t.Errorf("from %v, %v before IPv4 is %v, want %v", x.own, x.to, got, x.before)
		}
	}
}
