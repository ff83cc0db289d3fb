package wireguard_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/transport/pipe"
	"golang.org/x/crypto/chacha20poly1305"
)

// A court is a judge that has recorded two things: a session of the devices a and b, which began at the time 0 of both clocks,
// and packets 1 to 4, which were given to a.
type court struct {
	*judge
	a, b    *life
	packets [][]byte
}

const courtOfA, courtOfB = 0xa, 0xb // the index of the session at a, and at b

func newCourt(t *testing.T) *court {
	c := &court{judge: newJudge(2, true), a: &life{node: 0, name: "a"}, b: &life{node: 1, name: "b"}}
	send, err1 := chacha20poly1305.New(bytes.Repeat([]byte{1}, 32))
	receive, err2 := chacha20poly1305.New(bytes.Repeat([]byte{2}, 32))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	c.initiation(c.a, courtOfA)
	c.response(c.b, courtOfB, courtOfA, 0, send, receive)
	c.answered(c.a, courtOfB, courtOfA, 0)
	c.changing(1, func(m map[netip.Prefix]int) { m[netip.MustParsePrefix("10.0.0.0/16")] = 0 }, func() {})
	for id := range uint64(4) {
		src := netip.MustParseAddrPort("10.0.0.1:1")
		if id == 3 {
			src = netip.MustParseAddrPort("10.1.0.1:1")
		}
		p := pipe.UDPPacket(src, netip.MustParseAddrPort("10.1.0.1:1"), binary.BigEndian.AppendUint64(nil, id+1))
		c.packets = append(c.packets, p)
		c.handed(id+1, &parcel{from: c.a, to: 1, packet: bytes.Clone(p)})
	}
	return c
}

// message returns a data message from a to b that contains c.packets[i].
func (c *court) message(i int, counter uint64) []byte {
	m := []byte{4, 0, 0, 0, courtOfB, 0, 0, 0}
	m = binary.LittleEndian.AppendUint64(m, counter)
	var nonce [12]byte
	copy(nonce[4:], m[8:])
	return c.sessions[courtOfB][0].forResp.Seal(m, nonce[:], append(bytes.Clone(c.packets[i]), 0, 0, 0, 0), nil)
}

// carry tells the judge that a sent c.packets[i] and that b delivered this packet.
func (c *court) carry(i int, at time.Duration) {
	c.data(c.a, c.message(i, uint64(i)), at)
	c.delivered(c.b, c.packets[i], at)
}

// TestJudge checks that the judge reports each kind of fault, and reports nothing if there is no fault.
func TestJudge(t *testing.T) {
	const now = time.Second
	for _, test := range []struct {
		do   func(c *court)
		want string // part of the judge's report; empty if it must not report a fault
	}{
		{func(c *court) { c.carry(0, now); c.carry(1, now); c.carry(2, 180*time.Second-1) }, ""},
		{func(c *court) { c.carry(0, now); c.carry(2, now) }, ""},
		{func(c *court) { c.carry(0, now); c.delivered(c.b, c.packets[0], now) }, "twice"},
		{func(c *court) {
			c.data(c.a, c.message(0, 0), now)
			c.packets[0][21] ^= 1
			c.delivered(c.b, c.packets[0], now)
		}, "altered"},
		{func(c *court) { c.packets[0][20] ^= 1; c.data(c.a, c.message(0, 0), now) }, "altered"},
		{func(c *court) { c.delivered(c.b, c.packets[0], now) }, "never on the wire"},
		{func(c *court) { c.packets[0][35] = 99; c.delivered(c.b, c.packets[0], now) }, "nobody sent"},
		{func(c *court) { c.carry(3, now) }, "not of its allowed IPs"},
		{func(c *court) { c.data(c.a, c.message(0, 0), 180*time.Second) }, "sends under a key that is 3m0s old"},
		{func(c *court) { c.data(c.a, c.message(0, 0), now); c.delivered(c.b, c.packets[0], 180*time.Second) }, "under a key that is 3m0s old"},
		{func(c *court) { c.data(c.a, c.message(0, 5), now); c.data(c.a, c.message(1, 5), now) }, "counter 5"},
		{func(c *court) { c.data(c.a, c.message(1, 0), now); c.data(c.a, c.message(0, 1), now) }, "packet 1 to b#0 after 2"},
		{func(c *court) {
			c.data(c.a, c.message(0, 0), now)
			c.data(c.a, c.message(1, 1), now)
			c.delivered(c.b, c.packets[1], now)
			c.delivered(c.b, c.packets[0], now)
		}, "packet 1 from a#0 after 2"},
		{func(c *court) { c.data(c.a, c.message(0, 0), now); c.data(c.a, c.message(0, 1), now) }, "packet 1 to b#0 after 1"},
		{func(c *court) { c.data(c.b, c.message(0, 0), now) }, "no session"},
		{func(c *court) { c.data(&life{name: "a", number: 1}, c.message(0, 0), now) }, "no session"},
		{func(c *court) {
			c.data(c.a, c.message(0, 0), now)
			c.delivered(&life{node: 1, name: "b", number: 1}, c.packets[0], now)
		}, "sealed for b#0"},
	} {
		c := newCourt(t)
		test.do(c)
		got := strings.Join(c.verdict(), "; ")
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("the judge reports %q, want a report that contains %q", got, test.want)
		}
	}
	c := newCourt(t)
	c.await(2)
	if c.carry(0, now); c.hasFresh(0, 1) {
		t.Error("hasFresh is true after packet 1, want false: packet 1 comes before the mark")
	}
	if _, lost := c.lost(1); !strings.HasPrefix(lost, "3 packets were lost, the first from a#0 to b: packet 2 ") {
		t.Errorf("lost returned %q, want 3 lost packets, the first of which is packet 2", lost)
	}
	if c.carry(1, now); !c.hasFresh(0, 1) || c.hasFresh(1, 0) {
		t.Error("after packet 2, hasFresh is wrong, want true from a to b and false from b to a")
	}
}
