//go:build linux

package netns

import (
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// Sizes of messages, as UDP payload in bytes.
const (
	initiationSize = 148
	responseSize   = 92
	dataOverhead   = 32
)

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
	if got, want := p.a.status(p.b), data; got.tx != initiationSize+want || got.rx != responseSize+want {
		t.Errorf("a: sent %d bytes, received %d; want %d, %d", got.tx, got.rx, initiationSize+want, responseSize+want)
	}
	if got, want := p.b.status(p.a), data; got.rx != initiationSize+want || got.tx != responseSize+want {
		t.Errorf("b: received %d bytes, sent %d; want %d, %d", got.rx, got.tx, initiationSize+want, responseSize+want)
	}
	const packets, bytes = n4 + n6, n4*size4 + n6*size6
	for _, w := range []*wg{p.a, p.b} {
		if got, want := w.traffic(), (traffic{packets, bytes, packets, bytes}); got != want {
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
	before, sent := p.a.status(p.b), p.b.status(p.a).tx
	packets := p.a.traffic().rxPackets
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
	before, packets := p.a.status(p.b).tx, p.b.traffic()
	p.a.peer(p.b, "persistent-keepalive 1")
	testkit.Eventually(t, "a sends three keepalives", func() bool { return p.a.status(p.b).tx >= before+3*dataOverhead })
	if got := p.a.status(p.b).tx - before; got%dataOverhead != 0 {
		t.Errorf("a: sent %d bytes, want a multiple of %d", got, dataOverhead)
	}
	if got := p.b.traffic(); got != packets {
		t.Errorf("b: ip -s link counts %+v, want %+v as before", got, packets)
	}
}
