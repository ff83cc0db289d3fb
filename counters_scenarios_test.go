package wireguard_test

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// These tests check the counters to the byte. Received counts the accepted handshake messages and the accepted data messages. A
// data message counts 32 bytes plus the padded length of its packet; it does not count if the packet is malformed or its
// source address is not allowed. Sent counts the UDP payload of each successful send. Neither counter includes cookie replies.

const (
	initiationBytes = 148
	responseBytes   = 92
	keepaliveBytes  = 32
)

// A tally has the traffic counters for a peer that a device must show.
type tally struct{ sent, received wireguard.Traffic }

func (n *node) wantTally(o *node, want tally, why string) {
	n.w.Helper()
	n.w.settle()
	s := n.status(o)
	if got := (tally{s.Sent, s.Received}); got != want {
		n.w.Fatalf("at %v: %s counted %+v for its peer %s, want %+v: %s", n.w.now(), n.name, got, o.name, want, why)
	}
}

// sends adds messages to the sent counters of t and to the received counters of o. It takes their number and their total size in
// bytes.
func (t *tally) sends(o *tally, packets, bytes uint64) {
	t.sent.Packets += packets
	t.sent.Bytes += bytes
	o.received.Packets += packets
	o.received.Bytes += bytes
}

func TestExactCounters(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		var atA, atB tally
		want := func(why string) {
			w.Helper()
			a.wantTally(b, atA, why)
			b.wantTally(a, atB, why)
		}
		want("no message was sent yet")
		w.connect(a, b)
		atA.sends(&atB, 0, initiationBytes)
		atB.sends(&atA, 0, responseBytes)
		atA.sends(&atB, 0, keepaliveBytes)
		want("a handshake and its keepalive, which does not count as a packet")

		for size := range 40 {
			a.send(b, string(make([]byte, size)))
			atA.sends(&atB, 1, uint64(32+(28+size+15)/16*16))
			want("headers and payload are padded to a multiple of 16 bytes")
		}
		for size := 1420 - 28 - 17; size <= 1420-28; size++ {
			b.send(a, string(make([]byte, size)))
			atB.sends(&atA, 1, uint64(32+min((28+size+15)/16*16, 1420)))
			want("padding stops at the tunnel's MTU")
		}
		a.arrived()
		b.arrived()

		a.inject(ipPacket(netip.MustParseAddrPort("10.9.9.9:1"), netip.AddrPortFrom(b.addr, 1), "spoofed"))
		b.wantDrops(wireguard.DropSourceNotAllowed, 1, "the source is not one of a's addresses")
		atA.sent.Packets++
		atA.sent.Bytes += 32 + 48
		want("a packet that b's source check refuses counts as sent and not as received")

		malformed := a.packet(b, "malformed")
		malformed[3] = 200 // the length in the header is larger than the packet
		a.inject(malformed)
		b.wantDrops(wireguard.DropInnerMalformed, 1, "the header has a length larger than the packet")
		atA.sent.Packets++
		atA.sent.Bytes += 32 + 48
		want("a malformed inner packet counts as sent and not as received")

		data := w.last("a data")
		w.replay(data)
		b.wantDrops(wireguard.DropReplayed, 1, "replayed")
		data.data = bytes.Clone(data.data)
		data.data[30] ^= 1
		w.replay(data)
		b.wantDrops(wireguard.DropForged, 1, "forged")
		w.replay(w.last("a initiation"))
		b.wantDrops(wireguard.DropOldTimestamp, 1, "replayed")
		w.replay(w.last("b response"))
		a.wantDrops(wireguard.DropSuperseded, 1, "replayed")
		want("refused messages do not count as received")

		w.lose("a data", 2)
		a.send(b, "lost", "lost")
		atA.sent.Packets += 2
		atA.sent.Bytes += 2 * (32 + 32)
		want("messages that the network loses count as sent")

		w.net.SetConditions(pipe.Conditions{MTU: 100, RefuseTooBig: true})
		a.send(b, string(make([]byte, 100)))
		a.wantDrops(wireguard.DropSendFailed, 1, "the socket refuses the message")
		w.net.SetConditions(pipe.Conditions{})
		want("messages that the socket refuses do not count as sent")
	})
}

// A handshake message is counted as sent when the socket has sent it, and as received when it is accepted. Neither device counts
// cookie replies.
func TestExactCountersOfHandshakes(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		var atA, atB tally
		want := func(why string) {
			w.Helper()
			a.wantTally(b, atA, why)
			b.wantTally(a, atB, why)
		}
		w.lose("a initiation", 1)
		a.send(b, "x")
		w.want("a initiation", "the initiation is lost")
		atA.sent.Bytes += initiationBytes
		want("the lost initiation counts as sent")

		wireguard.ForceLoad(b.Device, true)
		w.wantJittered(5*time.Second, "a initiation, b cookie reply", "b is under load")
		atA.sent.Bytes += initiationBytes
		want("b did not accept the initiation, and its cookie reply is not counted")
		if n := b.Status().CookieReplies; n != 1 {
			w.Fatalf("%d cookie replies, want 1", n)
		}

		w.lose("b response", 1)
		w.advance(5*time.Second + jitter)
		w.want("a initiation, b response", "the initiation has a mac2 made with the cookie")
		atA.sends(&atB, 0, initiationBytes)
		atB.sent.Bytes += responseBytes
		want("b accepted the initiation, and the response is lost")

		wireguard.ForceLoad(b.Device, false)
		w.advance(5*time.Second + jitter)
		w.want("a initiation, b response, a data", "b is no longer under load")
		atA.sends(&atB, 0, initiationBytes)
		atB.sends(&atA, 0, responseBytes)
		atA.sends(&atB, 1, 32+32)
		want("both devices accepted the messages")

		w.net.SetConditions(pipe.Conditions{MTU: 100, RefuseTooBig: true})
		a.restart()
		a.send(b, "y")
		w.want("", "the socket refuses the initiation")
		want("messages that the socket refuses do not count as sent")
	})
}

// A peer's counters keep their values when sessions end and after Down. They are lost when the peer is removed.
func TestCountersOutliveSessions(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.send(b, "x")
		b.arrived()
		w.advance(10 * time.Second)
		before := a.status(b)
		w.advance(time.Hour) // the session has expired, and its keys are wiped
		a.Down()
		if s := a.status(b); s.Sent != before.Sent || s.Received != before.Received {
			w.Fatalf("sent %+v and received %+v, want %+v and %+v as before", s.Sent, s.Received, before.Sent, before.Received)
		}
		a.Up()
		a.RemovePeer(b.pub())
		a.knows(b)
		a.wantTally(b, tally{}, "a new peer has counters that are zero")
	})
}
