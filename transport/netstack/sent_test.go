package netstack

import (
	"testing"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// A small window of the peer is raised to what was sent, at most to a full segment. It is never lowered, a closed one stays closed,
// and that of a connection whose SYN was not seen stays as it is.
func TestSmallWindowHoldsWhatWasSent(t *testing.T) {
	f := handFlows["IPv4"]
	const first, scale, mtu = 1000, 9, 1380 // a full segment has 1,340 bytes
	for _, c := range []struct {
		name         string
		sent         int
		ack          uint32
		window, want uint16
		unknown      bool
	}{
		{"all acknowledged", 1340, first + 1340, 2, 2, false},
		{"fits", 1000, first, 2, 2, false},
		{"does not fit", 1340, first, 2, 3, false},
		{"more than a segment", 9000, first, 1, 3, false},
		{"in part acknowledged", 9000, first + 8300, 1, 2, false},
		{"larger", 1340, first, 10, 10, false},
		{"closed", 1340, first, 0, 0, false},
		{"without a SYN", 1340, first, 2, 2, true},
		{"an impossible number", 1340, first + 2000, 2, 2, false},
	} {
		w := new(windows)
		w.setMTU(mtu)
		syn := segment{from: f[1], to: f[0], flags: flagSYN, options: []byte{1, 3, 3, scale}}.packet()
		if l3, l4, ok := tcpHeaders(syn); ok && !c.unknown {
			w.inbound(syn, l3, l4)
		}
		data := segment{from: f[0], to: f[1], seq: first, flags: flagACK, window: 1000}.packet()
		w.outbound(data, packet.IP4Header, c.sent)
		w.outbound(data, packet.IP4Header, 1) // sent again: the farthest byte counts
		answer := segment{from: f[1], to: f[0], ack: c.ack, flags: flagACK, window: c.window}.packet()
		l3, l4, _ := tcpHeaders(answer)
		w.inbound(answer, l3, l4)
		if s, _ := parseSegment(answer); s.window != c.want || s.ack != c.ack {
			t.Errorf("%s: window %d and acknowledgement %d, want %d and %d", c.name, s.window, s.ack, c.want, c.ack)
		}
	}
}
