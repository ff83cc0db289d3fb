package errorlimit

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// datagram4 and datagram6 return an empty UDP datagram to an address without a route.
func datagram4(from netip.Addr) []byte {
	p := make([]byte, packet.IP4Header+packet.UDPHeader)
	packet.PutIP(p, len(p), from, netip.MustParseAddr("10.99.0.1"), packet.UDP, 0)
	return p
}

func datagram6(from netip.Addr) []byte {
	p := make([]byte, packet.IP6Header+packet.UDPHeader)
	packet.PutIP(p, len(p), from, netip.MustParseAddr("fd99::1"), packet.UDP, 0)
	return p
}

func TestLimit(t *testing.T) {
	var l Limit
	p := datagram4(netip.MustParseAddr("10.0.0.1"))
	for _, step := range []struct {
		at           int64 // ns
		packets, got int
		why          string
	}{
		{1, 100, errorsAtOnce, "all errors at once"},
		{errorCost, 5, 0, "the first further error is not allowed yet"},
		{errorCost + 1, 5, 1, "one further error is allowed"},
		{11*errorCost + 1, 50, 10, "ten further errors are allowed"},
		{1e15, 100, errorsAtOnce, "much later, no more errors than at once"},
		{1e15 - 1, 5, 0, "a clock that went back allows no error"},
	} {
		n := 0
		for range step.packets {
			if l.Answer(p, 0, step.at) != nil {
				n++
			}
		}
		if n != step.got {
			t.Errorf("%s: Answer answered %d of %d packets, want %d", step.why, n, step.packets, step.got)
		}
	}
}

// TestLimitPerParty checks that a party that provokes as many errors as it can does not use up the limits of others. It checks
// this for IPv4, for IPv6 and for a party with a name, and for each kind of error.
func TestLimitPerParty(t *testing.T) {
	var l Limit
	const now = 1
	hostile4, other4 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	hostile6, same6 := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::ffff")
	var peers [2][]byte
	for i := range peers {
		peers[i] = binary.BigEndian.AppendUint32(nil, uint32(i))
	}
	n := 0
	for range 10 * errorsAtOnce {
		if l.Answer(datagram4(hostile4), 0, now) != nil {
			n++
		}
		l.Answer(datagram6(hostile6), 20, now)
		l.Allow(peers[0], now)
	}
	if n != errorsAtOnce {
		t.Errorf("one party got %d errors, want %d", n, errorsAtOnce)
	}
	if l.Answer(datagram6(same6), 0, now) != nil {
		t.Error("another address in the same /64 network has a separate limit")
	}
	if l.Answer(datagram4(other4), 0, now) == nil || !l.Allow(peers[1], now) {
		t.Error("the hostile party used up the limit of another party")
	}
}

// TestLimitOfManyParties checks that parties share limits if there are more parties than a Limit has entries. So an attacker with
// all addresses cannot provoke more errors than the table allows. Once all entries are free again, a new party gets a separate
// entry.
func TestLimitOfManyParties(t *testing.T) {
	var l Limit
	for _, now := range []int64{1, 1 + errorsAtOnce*errorCost} {
		n := 0
		for i := range uint32(4 * parties * errorsAtOnce) {
			if l.Allow(binary.BigEndian.AppendUint32(nil, i), now) {
				n++
			}
		}
		if n < parties*errorsAtOnce*9/10 || n > parties*errorsAtOnce {
			t.Errorf("the parties got %d errors, want nearly %d and no more", n, parties*errorsAtOnce)
		}
	}
	if now := int64(1 + 2*errorsAtOnce*errorCost); !l.Allow([]byte("late"), now) {
		t.Error("a new party gets no error, although all entries are free again")
	}
}

// TestLimitUnanswered checks that a packet that may not be answered does not count against its sender's limit.
func TestLimitUnanswered(t *testing.T) {
	var l Limit
	p := datagram4(netip.MustParseAddr("10.0.0.1"))
	later := datagram4(netip.MustParseAddr("10.0.0.1"))
	binary.BigEndian.PutUint16(later[packet.IP4Fragment:], 100)
	for range 100 {
		for _, p := range [][]byte{nil, {0x45}, []byte("no packet, but longer than a header is"), later} {
			if l.Answer(p, 0, 1) != nil {
				t.Fatalf("Answer answered %x, which must not be answered", p)
			}
		}
	}
	if l.Answer(p, 0, 1) == nil {
		t.Error("packets that must not be answered used up the limit")
	}
}

func TestLimitMemory(t *testing.T) {
	var l Limit
	p := datagram4(netip.MustParseAddr("10.0.0.1"))
	l.Answer(nil, 0, 1)
	if l.table != nil {
		t.Error("an unused Limit has allocated its table")
	}
	for range errorsAtOnce {
		l.Answer(p, 0, 1)
	}
	if n := testing.AllocsPerRun(100, func() { l.Answer(p, 0, 1) }); n != 0 {
		t.Errorf("a packet beyond the limit causes %v allocations, want 0", n)
	}
}
