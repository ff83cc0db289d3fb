package wireguard

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/ratelimit"
)

const cookieT0 = 5000 * second

// fixedRandom returns a function that sets all bytes of a slice to one value: 1 in the first call, and one more in each further
// call.
func fixedRandom() func([]byte) {
	n := byte(0)
	return func(b []byte) {
		n++
		for i := range b {
			b[i] = n
		}
	}
}

func sourceBytes(s string) []byte {
	e := EndpointOf(netip.MustParseAddrPort(s))
	return e.appendSource(nil)
}

// TestCookieTranscript compares three values with fixed bytes: a cookie reply, the cookie that it contains, and the mac2 that the
// initiator makes with this cookie.
func TestCookieTranscript(t *testing.T) {
	const from = "192.0.2.1:1000"
	c := newChallenge(t)
	r := c.reply(from, cookieT0)
	wantHex(t, "cookie reply", r, goldenCookieReply)
	if !c.jar.consume(r, c.responder.public, cookieT0) {
		t.Fatal("the cookie reply is refused")
	}
	wantHex(t, "cookie", c.jar.cookie[:], goldenCookie)
	c.sign(cookieT0)
	wantHex(t, "mac2", c.m[len(c.m)-macSize:], goldenMAC2)
	if !c.valid(from, cookieT0) {
		t.Error("mac2 is not valid")
	}
}

// A challenge is an initiation (m) to a device under load, together with the state of the initiator and the responder.
type challenge struct {
	*exchange
	jar     cookieJar
	checker cookieChecker
	random  func([]byte)
	m       []byte
}

func newChallenge(t *testing.T) *challenge {
	c := &challenge{exchange: newExchange(t, PresharedKey{}), random: fixedRandom()}
	_, c.m = c.initiate(t)
	c.sign(cookieT0)
	return c
}

func (c *challenge) sign(now int64) {
	clear(c.m[len(c.m)-2*macSize:])
	c.jar.sign(c.m, c.responder.public, now)
}

func (c *challenge) reply(source string, now int64) []byte {
	r := c.checker.reply(c.m, sourceBytes(source), c.responder, now, c.random)
	return r[:]
}

func (c *challenge) valid(source string, now int64) bool {
	return c.checker.validMAC2(c.m, sourceBytes(source), now, c.random)
}

func (c *challenge) hasMAC2() bool {
	return !bytes.Equal(c.m[len(c.m)-macSize:], make([]byte, macSize))
}

func TestCookieRoundTrip(t *testing.T) {
	const from = "192.0.2.1:1000"
	c := newChallenge(t)
	if !c.checker.validMAC1(c.m, c.responder) {
		t.Fatal("mac1 is not valid")
	}
	if c.hasMAC2() || c.valid(from, cookieT0) {
		t.Fatal("the initiation has a mac2, or its mac2 is valid, although there is no cookie")
	}
	r := c.reply(from, cookieT0)
	if binary.LittleEndian.Uint32(r) != typeCookie || !bytes.Equal(r[4:8], c.m[4:8]) {
		t.Fatalf("the cookie reply begins with %x", r[:8])
	}
	if !c.jar.consume(r, c.responder.public, cookieT0) {
		t.Fatal("the cookie reply is refused")
	}
	c.sign(cookieT0 + second)
	if !c.hasMAC2() || !c.valid(from, cookieT0+second) {
		t.Fatal("the initiation with a mac2 from the cookie is refused")
	}
	for _, other := range []string{"192.0.2.1:1001", "192.0.2.2:1000", "[2001:db8::1]:1000", "[::ffff:192.0.2.1]:1001"} {
		if c.valid(other, cookieT0+second) {
			t.Errorf("mac2 is also valid from %s, but it must be bound to the address and the port", other)
		}
	}
	if !c.valid("[::ffff:192.0.2.1]:1000", cookieT0+second) {
		t.Error("mac2 is not valid from the same address in IPv4-mapped form")
	}
	for at := range len(c.m) {
		c.m[at] ^= 1
		if c.valid(from, cookieT0+second) {
			t.Errorf("byte %d changed, but mac2 is still valid", at)
		}
		c.m[at] ^= 1
	}
}

func TestCookieConsume(t *testing.T) {
	c := newChallenge(t)
	r := c.reply("192.0.2.1:1", cookieT0)
	for at := cookieNonce; at < cookieSize; at++ {
		r[at] ^= 1
		if c.jar.consume(r, c.responder.public, cookieT0) {
			t.Fatalf("byte %d changed, but the cookie reply is accepted", at)
		}
		r[at] ^= 1
	}
	if c.jar.received != 0 {
		t.Fatal("a forged cookie reply stored a cookie")
	}
	if c.jar.consume(r, c.initiator.public, cookieT0) {
		t.Fatal("a cookie reply of another responder is accepted")
	}
	if !c.jar.consume(r, c.responder.public, cookieT0) {
		t.Fatal("the valid cookie reply is refused")
	}
	if c.jar.consume(r, c.responder.public, cookieT0) {
		t.Fatal("the cookie reply is accepted twice for one message")
	}
	var fresh cookieJar
	if fresh.consume(r, c.responder.public, cookieT0) {
		t.Fatal("a cookie reply is accepted by a jar that signed no message")
	}
	c.m[50]++ // another message
	c.sign(cookieT0)
	if c.jar.consume(r, c.responder.public, cookieT0) {
		t.Fatal("a cookie reply to the previous message is accepted, although that message had another mac1")
	}
	if !c.hasMAC2() {
		t.Fatal("a refused cookie reply removed the cookie")
	}
}

// TestCookieUse checks that the initiator uses a cookie for 115 s after it received the cookie.
func TestCookieUse(t *testing.T) {
	for _, use := range []struct {
		age  int64
		want bool
	}{{0, true}, {115*second - 1, true}, {115 * second, false}, {1 << 60, false}} {
		c := newChallenge(t)
		c.jar.consume(c.reply("192.0.2.1:1", cookieT0), c.responder.public, cookieT0)
		c.sign(cookieT0 + use.age)
		if c.hasMAC2() != use.want {
			t.Errorf("a cookie that is %d ns old is used: %v, want %v", use.age, c.hasMAC2(), use.want)
		}
	}
}

// TestCookieSecret checks that a cookie secret is used for 120 s. After that, the next use makes a new secret, and cookies of the
// old secret are no longer valid.
func TestCookieSecret(t *testing.T) {
	for _, c := range []struct {
		age  int64
		want bool
	}{{0, true}, {120*second - 1, true}, {120 * second, false}, {240 * second, false}} {
		ch := newChallenge(t)
		ch.jar.consume(ch.reply("192.0.2.1:1", cookieT0), ch.responder.public, cookieT0)
		ch.sign(cookieT0)
		if got := ch.valid("192.0.2.1:1", cookieT0+c.age); got != c.want {
			t.Errorf("%d ns after the secret was made, mac2 is valid: %v, want %v", c.age, got, c.want)
		}
	}
}

func TestCookieIdentities(t *testing.T) {
	c := newChallenge(t)
	if c.checker.validMAC1(c.m, c.initiator) {
		t.Error("mac1 is valid for another device")
	}
	if !c.checker.validMAC1(c.m, c.responder) {
		t.Error("mac1 is not valid after a check for another identity")
	}
}

// TestCookieKeepsMAC1OfLastMessage checks that the mac1 of the last message is kept in the peer's cookie jar and not in the
// handshake, because a cookie reply to a response arrives when the responder has finished the handshake.
func TestCookieKeepsMAC1OfLastMessage(t *testing.T) {
	x := newExchange(t, PresharedKey{})
	_, m1 := x.initiate(t)
	m2, _ := x.respond(t, x.consume(t, m1))
	var jar cookieJar
	jar.sign(m2, x.initiator.public, cookieT0)
	r := (&cookieChecker{}).reply(m2, sourceBytes("192.0.2.9:9"), x.initiator, cookieT0, fixedRandom())
	if !bytes.Equal(r[4:8], m2[responseSender:responseSender+4]) {
		t.Error("the cookie reply to a response does not have the response's sender index")
	}
	if !jar.consume(r[:], x.initiator.public, cookieT0) {
		t.Error("the cookie reply to a response is refused")
	}
}

func TestSources(t *testing.T) {
	at := func(s string) *Endpoint { e := EndpointOf(netip.MustParseAddrPort(s)); return &e }
	link := func(name string, key byte) *Endpoint { return &Endpoint{Link: testLink{name, key}} }
	for _, c := range []struct {
		a, b                  *Endpoint
		sameLimit, sameCookie bool
	}{
		{at("192.0.2.1:1"), at("192.0.2.1:1"), true, true},
		{at("192.0.2.1:1"), at("192.0.2.1:2"), true, false},
		{at("192.0.2.1:1"), at("192.0.2.2:1"), false, false},
		{at("192.0.2.1:1"), at("[::ffff:192.0.2.1]:1"), true, true},
		{at("[2001:db8::1]:1"), at("[2001:db8::ffff:1]:1"), true, false},
		{at("[2001:db8::1]:1"), at("[2001:db8:0:0:ffff::1]:1"), true, false},
		{at("[2001:db8::1]:1"), at("[2001:db8:0:1::1]:1"), false, false},
		{at("192.0.2.1:1"), at("[c000:201::]:1"), false, false}, // the IPv6 address begins with the bytes of the IPv4 address
		{link("a", 1), link("b", 1), true, true},
		{link("a", 1), link("a", 2), false, false},
		{link("a", 0), at("[::]:1"), false, false},
	} {
		if got := sourceOf(c.a) == sourceOf(c.b); got != c.sameLimit {
			t.Errorf("%v and %v share a rate limit: %v, want %v", c.a, c.b, got, c.sameLimit)
		}
		if got := bytes.Equal(c.a.appendSource(nil), c.b.appendSource(nil)); got != c.sameCookie {
			t.Errorf("%v and %v share a cookie: %v, want %v", c.a, c.b, got, c.sameCookie)
		}
	}
}

func sourceNumber(n int) ratelimit.Source {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], uint32(n))
	return ratelimit.SourceOf(netip.AddrFrom4(a))
}

// TestCookieReplyAllocatesNothing checks that a device under load allocates nothing to check an initiation and to answer it with
// a cookie reply.
func TestCookieReplyAllocatesNothing(t *testing.T) {
	x := newChallenge(t)
	n := testing.AllocsPerRun(100, func() {
		from := x.checker.source[:0]
		from = append(from, "192.0.2.1 1"...)
		if !x.checker.validMAC1(x.m, x.responder) || x.checker.validMAC2(x.m, from, cookieT0, x.random) {
			t.Fatal("mac1 is refused, or mac2 is accepted without a cookie")
		}
		x.checker.reply(x.m, from, x.responder, cookieT0, x.random)
	})
	if n != 0 {
		t.Errorf("%v allocations for each reply, want 0", n)
	}
}
