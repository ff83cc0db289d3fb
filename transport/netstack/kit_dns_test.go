package netstack

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// A dnsServer is a name server that answers queries according to its behaviour (act).
type dnsServer struct {
	at       netip.AddrPort
	udp, tcp atomic.Int64 // how many questions arrived over UDP and over TCP

	mu    sync.Mutex
	act   behaviour
	asked []question
}

// A behaviour answers the query q by calling reply any number of times.
type behaviour func(q *dnsmessage.Message, overTCP bool, reply func([]byte))

func (s *dnsServer) become(b behaviour) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.act = b
}

// questions returns the questions that the server has received since the last call.
func (s *dnsServer) questions() []question {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

func (s *dnsServer) handle(q []byte, overTCP bool, reply func([]byte)) {
	var m dnsmessage.Message
	if m.Unpack(q) != nil || len(m.Questions) != 1 {
		return
	}
	if overTCP {
		s.tcp.Add(1)
	} else {
		s.udp.Add(1)
	}
	s.mu.Lock()
	s.asked = append(s.asked, question{m.Questions[0].Name.String(), m.Questions[0].Type})
	act := s.act
	s.mu.Unlock()
	act(&m, overTCP, reply)
}

// serveDNSAt starts a name server at the address a of n, or at all addresses of n if a is the zero Addr.
func serveDNSAt(t testing.TB, n *Net, a netip.Addr, act behaviour) *dnsServer {
	t.Helper()
	s := &dnsServer{at: netip.AddrPortFrom(a, 53), act: act}
	u, err := n.ListenUDP(s.at)
	if err != nil {
		t.Fatal(err)
	}
	l, err := n.ListenTCP(s.at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = u.Close(), l.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			k, from, err := u.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			s.handle(b[:k], false, func(p []byte) { _, _ = u.WriteToUDPAddrPort(p, from) })
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				q, err := readMessage(c)
				if err != nil {
					return
				}
				s.handle(q, true, func(p []byte) {
					_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
				})
			}()
		}
	}()
	return s
}

// serveDNS starts a name server for the zone "test" at all addresses of n.
func serveDNS(t testing.TB, n *Net) *dnsServer {
	t.Helper()
	return serveDNSAt(t, n, netip.Addr{}, honest)
}

// namesNet returns a Net that has one name server per behaviour, at 10.8.0.2 and the addresses that follow.
func namesNet(t testing.TB, c Config, acts ...behaviour) (*Net, []*dnsServer) {
	t.Helper()
	a := b4
	c.DNS = nil
	for range acts {
		c.DNS = append(c.DNS, a)
		a = a.Next()
	}
	if c.Addresses == nil {
		c.Addresses = []netip.Addr{a4}
	}
	far, err := New(Config{Addresses: c.DNS})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	n.link.attach(&wire{to: far})
	far.link.attach(&wire{to: n})
	var servers []*dnsServer
	for i, act := range acts {
		servers = append(servers, serveDNSAt(t, far, c.DNS[i], act))
	}
	return n, servers
}

// A zone maps a name to its records. A name that is not in the map does not exist.
type zone map[string][]dnsmessage.ResourceBody

var longTexts = func() (texts []string) {
	for range 20 {
		texts = append(texts, strings.Repeat("long ", 40))
	}
	return texts
}()

func dnsName(s string) dnsmessage.Name { return dnsmessage.MustNewName(s) }

func recordA(s string) *dnsmessage.AResource {
	return &dnsmessage.AResource{A: netip.MustParseAddr(s).As4()}
}

func recordAAAA(s string) *dnsmessage.AAAAResource {
	return &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(s).As16()}
}

func alias(to string) *dnsmessage.CNAMEResource {
	return &dnsmessage.CNAMEResource{CNAME: dnsName(to)}
}

// testZone contains the records of an honest server.
var testZone = zone{
	"both.test.":   {recordA("10.8.0.2"), recordAAAA("fd08::2")},
	"four.test.":   {recordA("10.8.0.2")},
	"six.test.":    {recordAAAA("fd08::2")},
	"two.test.":    {recordA("10.8.0.9"), recordA("10.8.0.2")},
	"text.test.":   {&dnsmessage.TXTResource{TXT: []string{"some text"}}, &dnsmessage.TXTResource{TXT: []string{"in ", "parts"}}},
	"long.test.":   {&dnsmessage.TXTResource{TXT: longTexts}},
	"empty.test.":  {},
	"alias.test.":  {alias("four.test.")},
	"alias2.test.": {alias("alias.test.")},
	"astray.test.": {alias("nowhere.test.")},
	"loop.test.":   {alias("loop2.test.")},
	"loop2.test.":  {alias("loop.test.")},
	"mail.test.": {
		&dnsmessage.MXResource{Pref: 20, MX: dnsName("two.test.")},
		&dnsmessage.MXResource{Pref: 10, MX: dnsName("four.test.")},
	},
	"badmail.test.": {
		&dnsmessage.MXResource{Pref: 10, MX: dnsName("four.test.")},
		&dnsmessage.MXResource{Pref: 20, MX: dnsName("<script>.test.")},
		&dnsmessage.MXResource{Pref: 30, MX: dnsName("10.8.0.2.")},
	},
	"ns.test.":                {&dnsmessage.NSResource{NS: dnsName("four.test.")}},
	"badns.test.":             {&dnsmessage.NSResource{NS: dnsName("a b.test.")}},
	"_web._tcp.test.":         {&dnsmessage.SRVResource{Priority: 1, Weight: 2, Port: 80, Target: dnsName("both.test.")}},
	"_bad._tcp.test.":         {&dnsmessage.SRVResource{Port: 80, Target: dnsName("a/b.test.")}},
	"2.0.8.10.in-addr.arpa.":  {&dnsmessage.PTRResource{PTR: dnsName("four.test.")}, &dnsmessage.PTRResource{PTR: dnsName("both.test.")}},
	"66.0.8.10.in-addr.arpa.": {&dnsmessage.PTRResource{PTR: dnsName("a\"b.test.")}},
	"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.0.d.f.ip6.arpa.": {&dnsmessage.PTRResource{PTR: dnsName("six.test.")}},
	"host.corp.test.": {recordA("10.8.0.7")},
	"a.b.corp.test.":  {recordA("10.8.0.8")},
}

const (
	zoneTTL     = 60
	negativeTTL = 30
)

func typeOf(b dnsmessage.ResourceBody) dnsmessage.Type {
	switch b.(type) {
	case *dnsmessage.AResource:
		return dnsmessage.TypeA
	case *dnsmessage.AAAAResource:
		return dnsmessage.TypeAAAA
	case *dnsmessage.CNAMEResource:
		return dnsmessage.TypeCNAME
	case *dnsmessage.TXTResource:
		return dnsmessage.TypeTXT
	case *dnsmessage.SRVResource:
		return dnsmessage.TypeSRV
	case *dnsmessage.MXResource:
		return dnsmessage.TypeMX
	case *dnsmessage.NSResource:
		return dnsmessage.TypeNS
	}
	return dnsmessage.TypePTR
}

func resource(name string, ttl uint32, b dnsmessage.ResourceBody) dnsmessage.Resource {
	h := dnsmessage.ResourceHeader{Name: dnsName(name), Class: dnsmessage.ClassINET, TTL: ttl}
	return dnsmessage.Resource{Header: h, Body: b}
}

// answer turns the query q into the response of a recursive server that knows z.
func (z zone) answer(q *dnsmessage.Message) {
	q.Response, q.RecursionAvailable, q.Additionals = true, true, nil
	name, t := q.Questions[0].Name.String(), q.Questions[0].Type
	found := false
	for range 10 {
		bodies, ok := z[lower(name)]
		if !ok {
			q.RCode = dnsmessage.RCodeNameError
			break
		}
		next := ""
		for _, b := range bodies {
			c, isAlias := b.(*dnsmessage.CNAMEResource)
			if typeOf(b) == t || isAlias {
				q.Answers = append(q.Answers, resource(name, zoneTTL, b))
				found = found || typeOf(b) == t
			}
			if isAlias && t != dnsmessage.TypeCNAME {
				next = c.CNAME.String()
			}
		}
		if next == "" {
			break
		}
		name = next
	}
	if !found {
		q.Authorities = []dnsmessage.Resource{resource("test.", 2*negativeTTL, &dnsmessage.SOAResource{
			NS: dnsName("ns.test."), MBox: dnsName("mail.test."), Serial: 1, MinTTL: negativeTTL,
		})}
	}
}

// packed encodes m. If m is too long for a datagram and overTCP is false, packed leaves out the answers and marks m as truncated.
func packed(m *dnsmessage.Message, overTCP bool) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	if len(b) > udpAnswer && !overTCP {
		m.Answers, m.Truncated = nil, true
		b, _ = m.Pack()
	}
	return b
}

// answers returns the behaviour of a server that answers from z. change, if not nil, changes each response before the server
// sends it.
func answers(z zone, change func(*dnsmessage.Message)) behaviour {
	return func(q *dnsmessage.Message, overTCP bool, reply func([]byte)) {
		z.answer(q)
		if change != nil {
			change(q)
		}
		reply(packed(q, overTCP))
	}
}

var honest = answers(testZone, nil)

// fails returns the behaviour of a server that answers each query with the response code rcode.
func fails(rcode dnsmessage.RCode) behaviour {
	return func(q *dnsmessage.Message, overTCP bool, reply func([]byte)) {
		q.Response, q.RecursionAvailable, q.RCode, q.Additionals = true, true, rcode, nil
		reply(packed(q, overTCP))
	}
}

func silent(*dnsmessage.Message, bool, func([]byte)) {}

// lame is the behaviour of a server that refers to another server instead of answering.
var lame = answers(zone{}, func(m *dnsmessage.Message) {
	m.RCode, m.RecursionAvailable = dnsmessage.RCodeSuccess, false
	m.Authorities = []dnsmessage.Resource{resource("test.", 60, &dnsmessage.NSResource{NS: dnsName("ns.elsewhere.")})}
})

// garbage answers with the question and then bytes that are not a record.
func garbage(q *dnsmessage.Message, overTCP bool, reply func([]byte)) {
	testZone.answer(q)
	b := packed(q, overTCP)
	for i := 12 + len(q.Questions[0].Name.String()) + 5; i < len(b); i++ {
		b[i] = 0xff
	}
	reply(b)
}

// quick is the time limit of lookups in tests in which no server answers.
const quick = 400 * time.Millisecond
