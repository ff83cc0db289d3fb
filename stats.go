package wireguard

import (
	"iter"
	"net/netip"
	"sync/atomic"
	"time"
)

// All returns each reason with its count, including counts of 0.
func (d Drops) All() iter.Seq2[DropReason, uint64] {
	return func(yield func(DropReason, uint64) bool) {
		for r, n := range d {
			if !yield(DropReason(r), n) {
				return
			}
		}
	}
}

// dropCounters is Drops while it counts.
type dropCounters [dropReasons]atomic.Uint64

func (c *dropCounters) add(r DropReason, n int) { c[r].Add(uint64(n)) }

func (c *dropCounters) load() (d Drops) {
	for i := range c {
		d[i] = c[i].Load()
	}
	return d
}

// Traffic counts what a device exchanged with a peer in one direction.
type Traffic struct {
	// Bytes is the size of data and handshake messages, without UDP and IP headers, as wg(8) shows it. Keepalives count,
	// messages that were refused do not.
	Bytes uint64

	// Packets is the number of packets inside the tunnel. Keepalives do not count.
	Packets uint64
}

// A Status is what a device is at one moment.
type Status struct {
	PublicKey    PublicKey // zero: no private key is set
	ListenPort   uint16    // the port in use, or the configured one while the device is down; zero there: the Bind chooses
	FirewallMark uint32    // as configured; zero: none
	Up           bool      // whether Up was called, and not Down or Close since
	Peers        int       // how many there are, looked-up ones among them

	// Drops counts what was dropped since New, by reason, including what each peer's own counts hold.
	Drops Drops
	// ECNMismatches counts packets delivered although they met congestion outside and were not ECN-capable inside.
	ECNMismatches uint64
	// CookieReplies counts the cookie replies sent, UnderLoad says whether the device asks for cookies now.
	CookieReplies uint64
	UnderLoad     bool
}

// A PeerStatus is what a peer is at one moment: its configuration and how it fares.
type PeerStatus struct {
	PublicKey           PublicKey      // never zero
	Endpoint            Endpoint       // as last heard from; zero: unknown
	AllowedIPs          []netip.Prefix // what is routed to the peer, and what it may send from
	PersistentKeepalive time.Duration  // zero: off
	MTU                 int            // as configured; zero: that of the Tunnel
	LookedUp            bool           // came from Config.Lookup

	// Timestamp is the newest initiation accepted from the peer.
	Timestamp Timestamp
	// SentTimestamp is the newest timestamp sent in an initiation to the peer, or the configured one if that is greater. A
	// successor with the same private key continues from it; see PeerConfig.SentTimestamp.
	SentTimestamp Timestamp
	// LastReceived is when the last authentic message from the peer was received, counted back from the wall time of this
	// call. Zero: never.
	LastReceived time.Time
	// LastHandshake is the wall time when the newest session was confirmed, by the clock of that moment; zero: never.
	LastHandshake time.Time

	Received, Sent Traffic // from and to the peer
	// Drops counts the peer's drops, by reason, since its session state was last wiped.
	Drops Drops
	// Staged is the number of packets that wait for a handshake, a keepalive among them.
	Staged int

	// Session is whether packets can be sent now without a handshake, SessionAge how old that session is.
	Session    bool
	SessionAge time.Duration
	// Initiating is whether a handshake of ours waits for its response, Attempts how many initiations were sent since
	// the peer was heard; each 20 an EventHandshakeFailed starts the count anew.
	Initiating bool
	Attempts   int

	// NextDeadline is how long until the peer's next timer fires, and NextReason what it will do, in words that may change.
	// An empty NextReason means that no timer is set.
	NextDeadline time.Duration
	NextReason   string
}
