package wireguard

import (
	"iter"
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

// dropCounters are the counters from which load makes a Drops.
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
	// Bytes is the size of data and handshake messages, without UDP and IP headers, as wg(8) shows it. Keepalives count;
	// messages that were refused do not.
	Bytes uint64

	// Packets is the number of packets inside the tunnel. Keepalives do not count.
	Packets uint64
}

// A Status describes a device at one moment.
type Status struct {
	PublicKey    PublicKey // the device's own key; zero means that no private key is set
	ListenPort   uint16    // the port in use, or the configured port while the device is down; zero means that the Bind will choose
	FirewallMark uint32    // the configured mark; zero means no mark
	Up           bool      // whether Up was called, and neither Down nor Close was called since
	Peers        int       // the number of peers, including those that Lookup supplied

	// Drops counts what was dropped for each reason since New. It includes the drops that PeerStatus counts.
	Drops Drops
	// ECNMismatches is the number of packets that were delivered although a router marked the outer packet as congested and the
	// inner packet cannot show the mark, because it does not use ECN.
	ECNMismatches uint64
	// CookieReplies is the number of cookie replies sent. UnderLoad is whether the device now requires cookies from the senders
	// of handshake messages.
	CookieReplies uint64
	UnderLoad     bool
}

// A PeerStatus describes a peer at one moment: its configuration and its state.
type PeerStatus struct {
	PublicKey           PublicKey     // the peer's name; never zero
	Endpoint            Endpoint      // where the peer last sent from, or as configured; zero means unknown
	AllowedIPs          int           // the number of the peer's prefixes; Device.AllowedIPs returns them
	PersistentKeepalive time.Duration // as configured; zero means off
	MTU                 int           // as configured, in bytes; zero means the MTU of the Tunnel
	LookedUp            bool          // whether Config.Lookup supplied the peer

	// Timestamp is the timestamp of the newest initiation that was accepted from the peer. Zero means none.
	Timestamp Timestamp
	// SentTimestamp is the newest timestamp sent in an initiation to the peer, or the configured one if that is greater. A later
	// device with the same private key continues from it; see PeerConfig.SentTimestamp. Zero means none.
	SentTimestamp Timestamp
	// LastReceived is when the last authentic message from the peer arrived: the wall time of this call minus the time since
	// then. Zero means never.
	LastReceived time.Time
	// LastHandshake is when the newest session was confirmed, as the wall clock showed it then. Zero means never.
	LastHandshake time.Time

	Received, Sent Traffic // what the peer sent, and what was sent to it
	// Drops counts the packets and messages of the peer that were dropped, for each reason. All counts restart at zero when the
	// device goes down, and when it wipes the peer's keys because there was no new session for 540 s.
	Drops Drops
	// Staged is the number of packets that wait for a handshake, including a keepalive.
	Staged int

	// Session is whether packets can be sent now without a handshake, and SessionAge is how old that session is.
	Session    bool
	SessionAge time.Duration
	// Initiating is whether a handshake of this device waits for its response. Attempts is the number of initiations sent since the
	// last authentic message from the peer. It restarts at zero after 20 initiations, when an EventHandshakeFailed is published.
	Initiating bool
	Attempts   int

	// Unopened is whether the newest initiation got an answer that was not authentic, because a public key or the preshared key is
	// wrong. Unsent is whether the newest message to the peer could not be sent. CookieAsked is whether the peer answered with a
	// cookie reply in the last 115 s, because it was under load.
	Unopened, Unsent, CookieAsked bool

	// NextDeadline is how long until the peer's next timer fires. NextReason says what this timer will do; its words may change.
	// An empty NextReason means that no timer is set.
	NextDeadline time.Duration
	NextReason   string
}
