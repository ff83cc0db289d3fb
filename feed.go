package wireguard

import (
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/idle"
)

// One goroutine carries a load, which is a batch of packets, from its source to the socket. It takes the source, reads the load,
// claims message counters for its packets, and seals (encrypts) them. It then leads the peers to which they go, which means that it
// sends to these peers. If another goroutine leads a peer already, the packets to this peer are handed in to that goroutine. While
// the goroutine that has read a large load seals it, a second goroutine on an idle core may read and seal the next load of the
// source:
//
//	carry ─▶ take, read, claim ─▶ seal ─▶ lead ─────────▶ take, read, claim ─▶ seal ─▶ lead ─▶ ...
//	             offer ╰─▶ carry ─▶ take, read, claim ─▶ seal ─▶ hand in ─▶ take, ...
//
// So the bytes of a packet stay in the cache of one core. If two cores sealed one load together, as an idle.Fork does, each cache
// line would move to the other core and back, and only one core would read and send. While too many loads of a source wait to be
// sent, no goroutine reads the source. The loads of a source wait only for the socket, never for a single peer.

// A feed is a source, together with the state that is common to the goroutines that carry its packets.
type feed struct {
	PacketSource
	*idle.Relay
	carry func()        // calls Device.carry for this feed; made once
	reads atomic.Uint32 // how often ReadPackets was called
}

func (d *Device) newFeed(s PacketSource) *feed {
	f := &feed{PacketSource: s, Relay: idle.NewRelay(d.helpers)}
	f.carry = func() { d.carry(f) }
	return f
}
