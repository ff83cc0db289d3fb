package netstack

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// evil is an address that only forged answers contain.
var evil = netip.MustParseAddr("10.66.66.66")

// forge returns an answer to q with the address evil. wrong modifies one thing in the answer.
func forge(q dnsmessage.Message, wrong func(*dnsmessage.Message)) []byte {
	q.Questions = slices.Clone(q.Questions)
	q.Response, q.RecursionAvailable, q.Additionals = true, true, nil
	q.Answers = []dnsmessage.Resource{resource(q.Questions[0].Name.String(), 60, recordA(evil.String()))}
	wrong(&q)
	b, err := q.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// forgeries are changes to an answer. A resolver must reject an answer with any of them.
var forgeries = map[string]func(*dnsmessage.Message){
	"wrong ID":    func(m *dnsmessage.Message) { m.ID ^= 0x100 },
	"a query":     func(m *dnsmessage.Message) { m.Response = false },
	"wrong name":  func(m *dnsmessage.Message) { m.Questions[0].Name = dnsName("two.test.") },
	"wrong type":  func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeAAAA },
	"no question": func(m *dnsmessage.Message) { m.Questions = nil },
}

func wantFour(t *testing.T, n *Net, what string) {
	t.Helper()
	if ips, err := n.LookupNetIP(t.Context(), "ip4", "four.test"); err != nil || len(ips) != 1 || ips[0] != b4 {
		t.Errorf("%s: the lookup of four.test returned %v, %v; want %v", what, ips, err, b4)
	}
}

// TestForgery makes forged answers arrive before the right one, from the server's own address. It checks that the resolver
// ignores them, and that it asks over TCP after too many of them.
func TestForgery(t *testing.T) {
	for what, wrong := range forgeries {
		for strays, overTCP := range map[int]int64{maxStrays - 1: 0, maxStrays: 1} {
			n, s := namesNet(t, Config{}, func(q *dnsmessage.Message, overTCP bool, reply func([]byte)) {
				for range strays {
					if !overTCP {
						reply(forge(*q, wrong))
					}
				}
				honest(q, overTCP, reply)
			})
			wantFour(t, n, what)
			if udp, tcp := s[0].udp.Load(), s[0].tcp.Load(); udp != 1 || tcp != overTCP {
				t.Errorf("%s, %d forged answers: the server got %d questions over UDP and %d over TCP, want 1 and %d", what, strays, udp, tcp, overTCP)
			}
		}
	}
}

// TestFlood checks a server that sends only forged answers, over UDP and over TCP.
func TestFlood(t *testing.T) {
	flood := func(q *dnsmessage.Message, overTCP bool, reply func([]byte)) {
		for range 100 {
			reply(forge(*q, forgeries["wrong ID"]))
		}
	}
	n, _ := namesNet(t, Config{}, flood)
	_, err := n.LookupNetIP(t.Context(), "ip4", "four.test")
	want := "lookup four.test on 10.8.0.2:53: too many answers to other questions over UDP, and over TCP: malformed answer"
	if err == nil || err.Error() != want {
		t.Errorf("the error is: %v; want: %s", err, want)
	}
	n, s := namesNet(t, Config{}, flood, honest)
	wantFour(t, n, "with an honest second server")
	if s[1].udp.Load() != 1 {
		t.Error("the second server was not asked exactly once")
	}
}

// TestWrongSource checks that answers from another address or another port are ignored, even with the right ID and question.
func TestWrongSource(t *testing.T) {
	for _, from := range []netip.AddrPort{netip.AddrPortFrom(b4.Next(), 53), netip.AddrPortFrom(b4, 5353)} {
		n, b, ab, _ := wired(t, 0)
		serveDNS(t, b)
		var sent atomic.Int64
		ab.tap = func(p []byte) bool {
			var q dnsmessage.Message
			if p[0]>>4 != 4 || p[9] != protoUDP || q.Unpack(p[28:]) != nil {
				return false
			}
			answer := forge(q, func(*dnsmessage.Message) {})
			if _, err := n.WritePackets([][]byte{reply4(p, from, answer)}); err == nil {
				sent.Add(1)
			}
			return false
		}
		wantFour(t, n, from.String())
		if sent.Load() != 1 {
			t.Errorf("%v: the test sent %d forged answers, want 1", from, sent.Load())
		}
	}
}

// reply4 returns a UDP packet from the address from to the sender of p. p is an IPv4 packet without options.
func reply4(p []byte, from netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 28, 28+len(payload))
	h := header.IPv4(b)
	h.Encode(&header.IPv4Fields{
		TotalLength: uint16(28 + len(payload)), TTL: 64, Protocol: protoUDP,
		SrcAddr: tcpip.AddrFromSlice(from.Addr().AsSlice()), DstAddr: header.IPv4(p).SourceAddress(),
	})
	h.SetChecksum(^h.CalculateChecksum())
	binary.BigEndian.PutUint16(b[20:], from.Port())
	copy(b[22:24], p[20:22])
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload)))
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[26:], ^packet.TransportSum(b, 20))
	return b
}

// TestTruncated checks that the resolver asks over TCP for records that do not fit into a datagram.
func TestTruncated(t *testing.T) {
	n, s := namesNet(t, Config{}, honest)
	texts, err := n.LookupTXT(t.Context(), "long.test")
	if err != nil || len(texts) != 1 || texts[0] != strings.Join(longTexts, "") {
		t.Errorf("LookupTXT returned %d texts, %v; want only the long text", len(texts), err)
	}
	if udp, tcp := s[0].udp.Load(), s[0].tcp.Load(); udp != 1 || tcp != 1 {
		t.Errorf("the server got %d questions over UDP and %d over TCP, want one each", udp, tcp)
	}
}

// TestTruncatedThenBad asks a server that truncates its answers over UDP and fails over TCP. Over TCP, it closes the connection or
// sends nonsense.
func TestTruncatedThenBad(t *testing.T) {
	for want, bad := range map[string]behaviour{
		"connection closed before the answer": silent,
		"malformed answer":                    func(_ *dnsmessage.Message, _ bool, reply func([]byte)) { reply([]byte("nonsense")) },
	} {
		truncates := func(q *dnsmessage.Message, overTCP bool, reply func([]byte)) {
			if overTCP {
				bad(q, overTCP, reply)
				return
			}
			honest(q, overTCP, reply)
		}
		n, _ := namesNet(t, Config{}, truncates)
		_, err := n.LookupTXT(t.Context(), "long.test")
		var dns *net.DNSError
		if !errors.As(err, &dns) || dns.IsNotFound || !strings.HasSuffix(dns.Err, want) {
			t.Errorf("the error is: %v; want %q at its end", err, want)
		}
		n, _ = namesNet(t, Config{}, truncates, honest)
		if _, err := n.LookupTXT(t.Context(), "long.test"); err != nil {
			t.Errorf("the lookup failed although the second server is good: %v", err)
		}
	}
}

// TestWithoutEDNS checks that the resolver asks again without EDNS if the server refuses questions with EDNS.
func TestWithoutEDNS(t *testing.T) {
	for _, rcode := range []dnsmessage.RCode{dnsmessage.RCodeFormatError, dnsmessage.RCodeNotImplemented} {
		n, s := namesNet(t, Config{}, func(q *dnsmessage.Message, overTCP bool, reply func([]byte)) {
			if len(q.Additionals) > 0 {
				fails(rcode)(q, overTCP, reply)
				return
			}
			honest(q, overTCP, reply)
		})
		wantFour(t, n, rcode.String())
		if got := s[0].udp.Load(); got != 2 {
			t.Errorf("%v: the server got %d questions, want one with EDNS and one without", rcode, got)
		}
	}
}
