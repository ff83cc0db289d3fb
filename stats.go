package wireguard

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// A DropReason says why a packet or a message was dropped.
type DropReason uint8

// Why the device drops. The comment says what was dropped.
const (
	DropDown             DropReason = iota // packet: the device is not up
	DropMalformed                          // packet to send: neither IPv4 nor IPv6, or shorter than its header
	DropNoRoute                            // packet: no peer is allowed its destination
	DropNoEndpoint                         // packet: its peer has not been heard of and has no endpoint
	DropStagedOverflow                     // packet: too many newer ones of its peer wait: 128 for a session, 1024 for their turn
	DropStagedBytes                        // packet: the device's memory for waiting packets is used up
	DropNoSession                          // packet: waited for a handshake that was given up, or its peer is gone
	DropSendFailed                         // packet: the bind could not send it
	DropLoop                               // packet: a message to its peer that came back, for the way there leads through the tunnel
	DropUnknownMessage                     // message: no WireGuard message by type, reserved bytes or length
	DropUnknownIndex                       // message: no session or handshake with that index
	DropExpiredKey                         // message: its session is too old, or got replaced meanwhile
	DropForged                             // message: authentication failed
	DropReplayed                           // message: its counter was seen, or is too old
	DropInnerMalformed                     // packet received: authentic, but not IPv4 or IPv6 or longer than it is
	DropSourceNotAllowed                   // packet received: authentic, but not from an address its peer may use
	DropSinkFull                           // packet received: the tunnel did not take it
	DropQueueFull                          // handshake message: too many wait already
	DropBadMAC                             // handshake message: mac1 does not fit the device's key
	DropCookieRequired                     // handshake message: under load, and without mac2; answered with a cookie
	DropRateLimited                        // handshake message: under load, and its source sent too many
	DropNoIdentity                         // handshake message: the device has no private key
	DropUnknownPeer                        // initiation: its key is no peer's
	DropOldTimestamp                       // initiation: a replay, by its timestamp
	DropTooSoon                            // initiation: less than 20 ms after the last one of its peer
	DropSuperseded                         // response: to an initiation that is no longer the newest
	DropLowOrder                           // handshake message: a Diffie-Hellman result of zero
	DropBadCookie                          // cookie reply: not to the last message sent, or not authentic
	DropLookupFull                         // initiation of a stranger: too many lookups wait, or peers came from them
	dropReasons
)

var dropNames = [dropReasons]string{
	"down", "malformed", "no route", "no endpoint", "staged overflow", "staged bytes", "no session", "send failed", "loop",
	"unknown message", "unknown index", "expired key", "forged", "replayed", "inner malformed", "source not allowed",
	"sink full", "queue full", "bad mac", "cookie required", "rate limited", "no identity", "unknown peer",
	"old timestamp", "too soon", "superseded", "low order", "bad cookie", "lookup full",
}

// String is the reason in lower-case words, fit for a label of a metric.
func (r DropReason) String() string {
	if r < dropReasons {
		return dropNames[r]
	}
	return "unknown"
}

// Drops counts what was dropped, by reason: d[DropReplayed].
type Drops [dropReasons]uint64

// Total is the sum over all reasons.
func (d *Drops) Total() (n uint64) {
	for _, v := range d {
		n += v
	}
	return n
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

// Traffic counts what went one way. Bytes are those of wg(8)'s transfer: of accepted data and handshake messages,
// without UDP and IP headers. Packets are data packets inside the tunnel, keepalives not among them.
type Traffic struct {
	Bytes   uint64 // on the wire, those of handshakes and keepalives too
	Packets uint64 // inside the tunnel
}

// A Status is what a device is at one moment.
type Status struct {
	PublicKey    PublicKey  // zero: no private key is set
	PrivateKey   PrivateKey // zero likewise
	ListenPort   uint16     // the port in use, or the configured one while the device is down; zero there: the Bind chooses
	FirewallMark uint32     // as configured; zero: none
	Up           bool       // whether Up was called, and not Down or Close since
	Peers        int        // how many there are, looked-up ones among them

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
	PresharedKey        PresharedKey   // zero: none
	Endpoint            Endpoint       // as last heard from; zero: unknown
	AllowedIPs          []netip.Prefix // what is routed to the peer, and what it may send from
	PersistentKeepalive time.Duration  // zero: off
	LookedUp            bool           // came from Config.Lookup

	// Timestamp is the newest initiation accepted from the peer.
	Timestamp Timestamp
	// LastHandshake is the wall time when the newest session was confirmed, by the clock of that moment; zero: never.
	LastHandshake time.Time

	Received, Sent Traffic // from and to the peer
	// Drops counts the peer's drops, by reason, since its session state was last wiped.
	Drops Drops
	// Staged is the number of packets that wait for a handshake or for their turn, a keepalive among them.
	Staged int

	// Session is whether packets can be sent now without a handshake, SessionAge how old that session is.
	Session    bool
	SessionAge time.Duration
	// Initiating is whether a handshake of ours waits for its response, Attempts how many initiations were sent since
	// the peer was heard; each 20 an EventHandshakeFailed starts the count anew.
	Initiating bool
	Attempts   int

	// NextDeadline is how long until the peer's next timer fires, NextReason what it will do; empty: none is set.
	NextDeadline time.Duration
	NextReason   string
}
