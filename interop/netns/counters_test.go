//go:build linux

package netns

import (
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// Sizes of messages, as UDP payload in bytes.
const (
	initiationSize = 148
	responseSize   = 92
	dataOverhead   = 32
)

// settled calls get until the result is want, at most for testkit.Patience, and returns the last result. It is for counters: the
// daemon counts a message just after it has sent it, so a ping may end before a message that it caused is counted.
func settled[T comparable](want T, get func() T) (got T) {
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if got = get(); got == want || time.Since(start) > testkit.Patience {
			return got
		}
	}
}

// transferred returns the bytes of messages from and to the peer p. It waits until they are want, as settled does.
func (w *wg) transferred(p *wg, want transfer) transfer {
	w.t.Helper()
	return settled(want, func() transfer { return w.status(p).transfer })
}

// sealed returns the size of the data message that carries a packet.
func sealed(packet int64) int64 { return dataOverhead + (packet+15)/16*16 }

// TestExactCounters checks that after some pings, "wg show" and "ip -s link" report the exact numbers of bytes and packets on both
// hosts. "wg show" counts bytes of UDP payload: those of all accepted messages are "received", and those of all sent messages are
// "sent". The payload of a data message is 32 bytes plus the padded packet.
//
//	a ══ v0 ── v0 ══ b     newPair
func TestExactCounters(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(outerB4)
	const n4, n6 = 10, 7
	const size4, size6 = 84, 104 // packet sizes in bytes: the IP and ICMP headers, and 56 bytes of data
	p.a.ping(innerB4, n4)
	p.a.ping(innerB6, n6)
	data := n4*sealed(size4) + n6*sealed(size6)
	initiator, responder := transfer{responseSize + data, initiationSize + data}, transfer{initiationSize + data, responseSize + data}
	if got := p.a.transferred(p.b, initiator); got != initiator {
		t.Errorf("a: sent %d bytes, received %d; want %d, %d", got.tx, got.rx, initiator.tx, initiator.rx)
	}
	if got := p.b.transferred(p.a, responder); got != responder {
		t.Errorf("b: received %d bytes, sent %d; want %d, %d", got.rx, got.tx, responder.rx, responder.tx)
	}
	const packets, bytes = n4 + n6, n4*size4 + n6*size6
	for _, w := range []*wg{p.a, p.b} {
		want := traffic{packets, bytes, packets, bytes}
		if got := settled(want, w.traffic); got != want {
			t.Errorf("%s: ip -s link counts %+v, want %+v: one packet per ping and direction, with its inner bytes", w.name, got, want)
		}
	}
}

// TestRefusedPacketsAreNotCounted checks that the receiver does not count packets whose inner source address the peer may not use,
// and does not deliver them to its interface. Their sender counts them.
func TestRefusedPacketsAreNotCounted(t *testing.T) {
	t.Parallel()
	notKernelLike(t, "it counts packets that the source check refuses as received")
	p := newPair(t)
	p.meet(outerB4)
	p.a.ping(innerB4, 1)
	p.b.addresses(p.b.name, "10.0.0.77/32")
	before := transfer{responseSize + sealed(84), initiationSize + sealed(84)}
	sent := p.b.transferred(p.a, transfer{before.tx, before.rx}).tx
	packets := settled(1, func() int64 { return p.a.traffic().rxPackets })
	p.b.noPing("10.0.0.77 is not in b's allowed IPs", innerA4, "-I", "10.0.0.77")
	if got := p.b.status(p.a).tx - sent; got != sealed(84) {
		t.Errorf("b: sent %d bytes, want %d", got, sealed(84))
	}
	if got := p.a.status(p.b); got.rx != before.rx {
		t.Errorf("a: received %d bytes, want %d as before", got.rx, before.rx)
	}
	if got := p.a.traffic().rxPackets; got != packets {
		t.Errorf("a: the daemon has delivered %d packets to the interface, want %d as before", got, packets)
	}
}

// TestKeepalivesAreCounted checks that "wg show" counts the bytes of persistent keepalives. A keepalive is an empty data message
// that the daemon does not deliver to the interface, so "ip -s link" does not count it.
func TestKeepalivesAreCounted(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(outerB4)
	p.a.ping(innerB4, 1)
	before := p.a.transferred(p.b, transfer{responseSize + sealed(84), initiationSize + sealed(84)}).tx
	packets := settled(traffic{1, 84, 1, 84}, p.b.traffic)
	p.a.peer(p.b, "persistent-keepalive 1")
	testkit.Eventually(t, "a sends three keepalives", func() bool { return p.a.status(p.b).tx >= before+3*dataOverhead })
	if got := p.a.status(p.b).tx - before; got%dataOverhead != 0 {
		t.Errorf("a: sent %d bytes, want a multiple of %d", got, dataOverhead)
	}
	if got := p.b.traffic(); got != packets {
		t.Errorf("b: ip -s link counts %+v, want %+v as before", got, packets)
	}
}
