package wireguard

import (
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/idle"
)

// A source's load is carried by one goroutine from the source to the socket. While that goroutine seals a large load,
// another one may read and seal the next, on an idle core:
//
//	carry ─▶ take, read, claim ─▶ seal ─▶ lead ─────────▶ take, read, claim ─▶ seal ─▶ lead ─▶ ...
//	             offer ╰─▶ carry ─▶ take, read, claim ─▶ seal ─▶ hand in ─▶ take, ...
//
// So a packet's bytes stay with one core. If cores shared one load, as in a fork, each cache line would move to the other core
// and back, and only one core would read and send. While too many loads of a source wait to be sent, the source is not
// read. Its loads wait at most for the socket, never for a single peer.

// A feed is a source and what the goroutines that carry its packets share.
type feed struct {
	PacketSource
	*idle.Relay
	carry func()        // Device.carry, made once
	reads atomic.Uint32 // calls of ReadPackets
}

func (d *Device) newFeed(s PacketSource) *feed {
	f := &feed{PacketSource: s, Relay: idle.NewRelay(d.helpers)}
	f.carry = func() { d.carry(f) }
	return f
}
